"""What runs inside Redis: each script is atomic, so several processes may append and erase at once.

Keys, behind a prefix:

    key                 the key of the hashes, in hexadecimal digits
    counters            arrivals, users, erasures
    numbers, names      {hash of a user: number}, {number: user}
    history:NUMBER      sorted set of a user's events: time in microseconds, "ARRIVAL EVENT_ID JSON"
    horizon:NUMBER      the time of the newest event that was removed to keep the bound
    id:EVENT_ID         the hash of an event's content, for a while
    journal             stream of all events, by arrival
    erased              {hash of a user: time}

Every script begins with the key of the hashes: a server that lost its data, or was emptied, has another one.
"""

CHECK = """
local p = KEYS[1]
if redis.call('GET', p .. 'key') ~= ARGV[1] then return redis.error_reply('OTHERKEY the store was made anew') end
"""

# ARGV: key, cutoff, now, most events of a user or 0, seconds that ids are kept, length of the journal, most seconds of
# age or 0; then of each event: hash of the user, user, time, event id, hash of the content, content.
APPEND = (
    CHECK
    + """
local cutoff, now, most, ttl = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local length, age = ARGV[6], tonumber(ARGV[7])
local ID_BEGIN, ID_END = 18, 49  -- behind 16 digits and a blank

local function remove(history, members)
  for i = 1, #members do
    redis.call('DEL', p .. 'id:' .. string.sub(members[i], ID_BEGIN, ID_END))
    redis.call('ZREM', history, members[i])
  end
end

-- Never given twice, even if the server forgot the last second before it failed.
local function next_arrival()
  local clock = redis.call('TIME')
  local last = tonumber(redis.call('HGET', p .. 'counters', 'arrivals') or '0')
  local arrival = string.format('%.0f', math.max(last + 1, tonumber(clock[1]) * 1000000 + tonumber(clock[2])))
  redis.call('HSET', p .. 'counters', 'arrivals', arrival)
  return arrival
end

local function insert(user, name, number, time, id, hash, content)
  if not number then
    number = string.format('%.0f', redis.call('HINCRBY', p .. 'counters', 'users', 1))
    redis.call('HSET', p .. 'numbers', user, number)
    redis.call('HSET', p .. 'names', number, name)
  end
  local history, horizon = p .. 'history:' .. number, p .. 'horizon:' .. number
  local arrival = next_arrival()
  redis.call('SET', p .. 'id:' .. id, hash, 'EX', ttl)
  redis.call('ZADD', history, time, string.format('%016.0f', tonumber(arrival)) .. ' ' .. id .. ' ' .. content)
  local fields = {'u', number, 't', time, 'i', id, 'c', content}
  redis.call('XADD', p .. 'journal', 'MAXLEN', '~', length, arrival .. '-0', unpack(fields))
  if age > 0 then
    remove(history, redis.call('ZRANGEBYSCORE', history, '-inf', '(' .. ARGV[2], 'LIMIT', 0, 100))
    local newest = tonumber(redis.call('ZREVRANGE', history, 0, 0, 'WITHSCORES')[2])
    local left = string.format('%.0f', math.max(1000, (newest - now) / 1000 + age * 1000))
    redis.call('PEXPIRE', history, left)
    redis.call('PEXPIRE', horizon, left)
  end
  local excess = most > 0 and redis.call('ZCARD', history) - most or 0
  if excess > 0 then
    local last = math.min(excess, 500) - 1
    local scored = redis.call('ZRANGE', history, last, last, 'WITHSCORES')
    remove(history, redis.call('ZRANGE', history, 0, last))
    redis.call('SET', horizon, string.format('%.0f', tonumber(scored[2])), 'KEEPTTL')
    if age > 0 then redis.call('PEXPIRE', horizon, math.max(1, redis.call('PTTL', history))) end
  end
end

local outcomes = {}
for i = 8, #ARGV, 6 do
  local user, time, id, hash = ARGV[i], tonumber(ARGV[i + 2]), ARGV[i + 3], ARGV[i + 4]
  local erased = redis.call('HGET', p .. 'erased', user)
  local number = redis.call('HGET', p .. 'numbers', user)
  local horizon = number and redis.call('GET', p .. 'horizon:' .. number)
  local same = redis.call('GET', p .. 'id:' .. id)
  local outcome = 'inserted'
  if erased and time <= tonumber(erased) then
    outcome = 'erased'
  elseif time < cutoff or (horizon and time <= tonumber(horizon)) then
    outcome = 'expired'
  elseif same then
    outcome = same == hash and 'duplicate' or 'conflict'
  else
    insert(user, ARGV[i + 1], number, ARGV[i + 2], id, hash, ARGV[i + 5])
  end
  outcomes[#outcomes + 1] = outcome
end
return outcomes
"""
)

# ARGV: key, hash of the user, cutoff, length. Members and times, newest first.
HISTORY = (
    CHECK
    + """
local number = redis.call('HGET', p .. 'numbers', ARGV[2])
if not number then return {} end
return redis.call('ZREVRANGEBYSCORE', p .. 'history:' .. number, '+inf', ARGV[3], 'WITHSCORES', 'LIMIT', 0, ARGV[4])
"""
)

# ARGV: key, hash of the user, now. Whether there was something.
ERASE = (
    CHECK
    + """
local user, moment = ARGV[2], tonumber(ARGV[3])
local number = redis.call('HGET', p .. 'numbers', user)
if number then
  local history = p .. 'history:' .. number
  for _, member in ipairs(redis.call('ZRANGE', history, 0, -1)) do
    redis.call('DEL', p .. 'id:' .. string.sub(member, 18, 49))
    redis.call('XDEL', p .. 'journal', string.format('%.0f-0', tonumber(string.sub(member, 1, 16))))
  end
  local newest = redis.call('ZREVRANGE', history, 0, 0, 'WITHSCORES')[2]
  if newest then moment = math.max(moment, tonumber(newest)) end
  redis.call('DEL', history, p .. 'horizon:' .. number)
  redis.call('HDEL', p .. 'numbers', user)
  redis.call('HDEL', p .. 'names', number)
end
local before = redis.call('HGET', p .. 'erased', user)
if before then moment = math.max(moment, tonumber(before)) end
redis.call('HSET', p .. 'erased', user, string.format('%.0f', moment))
redis.call('HINCRBY', p .. 'counters', 'erasures', 1)
return number and 1 or 0
"""
)

# ARGV: key, cutoff, cursor. Removes what is too old in the journal, and users without a history; the next cursor.
TIDY = (
    CHECK
    + """
redis.call('XTRIM', p .. 'journal', 'MINID', '~', ARGV[2] .. '-0')
local page = redis.call('HSCAN', p .. 'numbers', ARGV[3], 'COUNT', 100)
for i = 1, #page[2], 2 do
  local user, number = page[2][i], page[2][i + 1]
  if redis.call('EXISTS', p .. 'history:' .. number) == 0 then
    redis.call('DEL', p .. 'horizon:' .. number)
    redis.call('HDEL', p .. 'numbers', user)
    redis.call('HDEL', p .. 'names', number)
  end
end
return page[1]
"""
)
