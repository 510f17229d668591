"""Search in the items of a model, by words of their titles and ids.

search = ItemSearch(predictor.vocabulary)
search.lines("desk lamp", 20)          # lines of the vocabulary, the more common items first
"""

from __future__ import annotations

import numpy as np

from next_behavior.model.vocabulary import VocabularyTable


class ItemSearch:
    """One text in memory, a line for each item in the order of the vocabulary, which is that of their counts."""

    def __init__(self, vocabulary: VocabularyTable) -> None:
        lines = (vocabulary.fields(line) for line in range(1, len(vocabulary.line_starts) - 1))
        searched = [_folded(f"{title} {item}") for _, item, _, title in lines]
        self.text = "\n".join([*searched, ""])
        self.ends = np.cumsum([len(line) + 1 for line in searched])  # (V,) where the next line begins

    def lines(self, query: str, limit: int) -> list[int]:
        """Lines of the vocabulary that hold every word of the query in any case, at most `limit`; the first is 1."""
        words = sorted(_folded(query).split(), key=len, reverse=True)
        longest, others = (words[0], words[1:]) if words else ("", [])
        found: list[int] = []
        row, size = 0, len(self.ends)
        while row < size and len(found) < limit:
            begin = int(self.ends[row - 1]) if row else 0
            position = self.text.find(longest, begin)
            if position < 0:
                break
            row = int(np.searchsorted(self.ends, position, side="right"))
            if row == size:  # an empty query is found behind the last line
                break
            begin = int(self.ends[row - 1]) if row else 0
            if all(self.text.find(word, begin, int(self.ends[row])) >= 0 for word in others):
                found.append(row + 1)
            row += 1
        return found


def _folded(text: str) -> str:
    return text.casefold().replace("\n", " ")
