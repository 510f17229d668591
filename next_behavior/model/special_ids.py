"""The ids that every vocabulary reserves, and the names of the paths: their one home.

Item ids are 0 [PAD], 1 [UNK], 2 [NONE] and 3 [START], then the [NEW_j] slots for items that the vocabulary does not
know, then the items. Action ids and time-gap ids reserve their first numbers, too. This file imports nothing.
"""

PAD = 0  # padding, in every channel

UNK = 1  # an unknown item that no [NEW_j] is left for
NONE = 2  # the event names no item
START = 3  # an empty history
FIRST_NEW = 4  # [NEW_1]
ITEM_SPECIALS = ("[PAD]", "[UNK]", "[NONE]", "[START]")

UNKNOWN_ACTION = 1
START_ACTION = 2
FIRST_ACTION = 3
ACTION_SPECIALS = ("[PAD]", "[UNK]", "[START]")

NO_GAP = 1  # no time since the event before is known
FIRST_GAP = 2

IGNORED = -100  # a label that counts for no loss

# The ways to name an item; within "new", counts decide between generate and associate.
PATHS = ("none", "generate", "repeat", "associate")
