"""Covering arrays: few rows of a table of factors in which every allowed pair of values meets.

Deterministic: the rows depend on the factors, their order and the rules, and on nothing else.
"""

import itertools


class Rules:
    """What may stand in one row: predicates of some of the factors, each checked as soon as these have values."""

    def __init__(self, *rules):
        self.rules = rules
        self.names = {name for names, _ in rules for name in names}

    def allow(self, row):
        return all(rule(*(row[n] for n in names)) for names, rule in self.rules if all(n in row for n in names))


def rule(*names):
    """Names the factors that a predicate is about."""
    return lambda predicate: (names, predicate)


def pairs_of(row):
    """All pairs of (factor, value) of a row, in the order of its factors."""
    return list(itertools.combinations(row.items(), 2))


def completed(row, factors, rules, gain):
    """A row with all factors, those still open chosen by what they gain; ``None`` where nothing is allowed."""
    open_factors = [name for name in factors if name not in row]
    if not open_factors:
        return row
    # What rules speak of comes first: where they cannot be kept, few values have been tried in vain.
    name = next((n for n in open_factors if n in rules.names), open_factors[0])
    # Of equal gains the first value: the usual one.
    for value in sorted(factors[name], key=lambda value: -gain(row, name, value)):
        more = {**row, name: value}
        if rules.allow(more):
            found = completed(more, factors, rules, gain)
            if found is not None:
                return found
    return None


def can_meet(one, other, factors, rules):
    """Whether some row may hold two values of two factors."""
    row = dict((one, other))
    return rules.allow(row) and completed(row, factors, rules, lambda *_: 0) is not None


def covering(factors, rules=None):
    """Rows that cover every allowed pair of values of every two factors.

    Args:
        factors: Values by the name of the factor; the first one is the usual one.
        rules: What may stand in one row.

    Returns:
        The rows, dictionaries in the order of the factors.
    """
    rules = rules or Rules()
    left = dict.fromkeys(
        ((a, va), (b, vb)) for a, b in itertools.combinations(factors, 2) for va in factors[a] for vb in factors[b]
    )
    uses = {}

    def gain(row, name, value):
        new = sum(_ordered(order, (n, v), (name, value)) in left for n, v in row.items())
        return new - 1e-3 * uses.get((name, value), 0)

    order = {name: i for i, name in enumerate(factors)}
    rows = []
    while left:
        seed = next(iter(left))
        row = dict(seed)
        row = completed(row, factors, rules, gain) if rules.allow(row) else None
        if row is None:  # no row at all may hold the two
            del left[seed]
            continue
        row = {name: row[name] for name in factors}
        for item in row.items():
            uses[item] = uses.get(item, 0) + 1
        for pair in pairs_of(row):
            left.pop(pair, None)
        rows.append(row)
    return rows


def _ordered(order, one, other):
    return (one, other) if order[one[0]] < order[other[0]] else (other, one)
