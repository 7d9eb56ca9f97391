"""What runs together: the order of the examples and the forward passes that hold them.

A forward pass holds as many records as fit. Examples that begin alike run behind one prefix, whose
keys and values are computed once; groups whose prefixes are about as long run together; what is
left goes by length, so that little is padded. The plan freezes the result before anything runs, so
it has no part in what workers decide.

Two levels keep the first records of a collection a random sample. Examples that are about the same
thing (same images, or more than half of their tokens in common) are a *cluster* and stay together;
clusters follow in the order of the seed. Within a part, records may stand in any order, and there
they are arranged for speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvwstream.coefficients import Int64

PASS_COST = 32
"""What a pass costs beside its tokens, in tokens: launching every layer once."""
MOST_RECORDS = 64
"""Records in a pass at most: each has a row of sums on the device."""
IMAGE = 1 << 31
"""Stands for an image token; no vocabulary is so large."""
Tokens = npt.NDArray[np.uint32]


class Reading(NamedTuple):
    """What the model reads of an example."""

    tokens: Tokens
    """(token,) up to the last one that predicts, `IMAGE` where an image enters."""
    first: int
    """First position that counts: a prefix ends there at the latest."""
    bare: int
    """Where the last image ends: a prefix reaches there at least, or is none."""
    images: str
    """Names the images; empty without."""

    @property
    def key(self) -> tuple[str, bytes]:
        """Sorts like beginnings next to each other."""
        return self.images, self.tokens.astype(">u4").tobytes()

    @property
    def cost_of_images(self) -> int:
        """What it costs to see the images, in tokens: about as many as they become.

        At least what a group costs, so that images in common are reason enough for one.
        """
        count = int(np.count_nonzero(self.tokens == IMAGE))
        return 2 * PASS_COST + count if count else 0


@dataclass(frozen=True)
class Arrangement:
    """Order and passes; all arrays (example,) in the new order."""

    order: Int64
    """The example at each place."""
    cluster: Int64
    """Number of the cluster."""
    forward: Int64
    """Number of the forward pass that the example's record is in."""
    group: Int64
    """Number of the group. Where there is a prefix, its examples begin with the same tokens, and
    either have passes of their own or are one of several groups that have a pass together."""
    prefix: Int64
    """Tokens that the pass takes from the prefixes, which are equally long there; 0 without."""

    @property
    def columns(self) -> tuple[Int64, Int64, Int64, Int64]:
        """All but the order, as the table of examples holds them."""
        return self.cluster, self.forward, self.group, self.prefix


def in_order(num_examples: int, batch_size: int) -> Arrangement:
    """Every record a pass of its own, in the order given: the progressive schedule."""
    line = np.arange(num_examples)
    nothing = np.zeros(num_examples, np.int64)
    return Arrangement(line, line, line // batch_size, nothing, nothing)


def arrange(
    readings: Sequence[Reading],
    *,
    batch_size: int,
    part_size: int,
    pass_tokens: int,
    sharing: bool,
) -> Arrangement:
    """Arrange examples that come in the order of the seed.

    A pass holds at most `pass_tokens` positions behind its prefixes, padding included; a record
    that is longer has a pass of its own. Prefixes that run together hold as many at most. Without
    `sharing` no prefix is cut off.
    """
    line, cluster = [], []
    # The member that sorts first stands for its cluster. The one that the seed draws first would
    # put large clusters too early.
    for number, members in enumerate(sorted(_clusters(readings), key=lambda of: of[0])):
        line += members
        cluster += [number] * len(members)
    order: list[int] = []
    group: list[int] = []
    prefixes: list[int] = []
    for start in range(0, len(line), part_size * batch_size):
        part = range(start, min(start + part_size * batch_size, len(line)))
        groups = _groups([readings[line[place]] for place in part], sharing=sharing)
        for members, shared in groups:
            order += [part[member] for member in members]
            group += [group[-1] + 1 if group else 0] * len(members)
            prefixes += [shared] * len(members)
    arranged = [readings[line[place]] for place in order]
    forward, prefix = _passes(arranged, group, prefixes, batch_size, part_size, pass_tokens)
    return Arrangement(
        np.array([line[place] for place in order], np.int64),
        np.array([cluster[place] for place in order], np.int64),
        forward,
        np.array(group, np.int64),
        prefix,
    )


def _clusters(readings: Sequence[Reading]) -> list[list[int]]:
    """Members of each cluster, those that begin alike next to each other."""
    line = sorted(range(len(readings)), key=lambda index: readings[index].key)
    everyones = _common(readings[line[0]], readings[line[-1]]) if line else 0
    clusters: list[list[int]] = []
    for index in line:
        reading = readings[index]
        if clusters:
            head = readings[clusters[-1][0]]
            longest = max(len(head.tokens), len(reading.tokens)) - everyones
            alike = _common(head, reading) - everyones > longest / 2
            if head.images == reading.images and (alike or reading.images):
                clusters[-1].append(index)
                continue
        clusters.append([index])
    return clusters


def _common(one: Reading, other: Reading) -> int:
    """Tokens that both begin with, and which mean the same to the model."""
    length = min(len(one.tokens), len(other.tokens))
    unlike = one.tokens[:length] != other.tokens[:length]
    if one.images != other.images:
        unlike |= one.tokens[:length] == IMAGE
    return int(unlike.argmax()) if unlike.any() else length


def _groups(readings: Sequence[Reading], *, sharing: bool) -> list[tuple[list[int], int]]:
    """Members of each group, shortest first, with the prefix they share (0: none).

    The cheapest cut of the sorted line in runs, where a run of two or more costs its prefix and its
    images once, the tails, and two passes more. Groups that can have a pass together (with images
    or without, prefixes about as long) are next to each other; what stays alone is one group, the
    last.
    """
    line = sorted(range(len(readings)), key=lambda index: readings[index].key)
    lengths = np.array([len(readings[index].tokens) for index in line])
    before = np.concatenate([[0], np.cumsum(lengths)])
    # By the first member of a run that ends here: the longest prefix, and the shortest.
    shared = np.array([readings[index].first for index in line])
    looks = [readings[index].cost_of_images for index in line]
    bare = np.array([readings[index].bare for index in line])
    best = np.zeros(len(line) + 1)
    begins, prefix = np.zeros((2, len(line)), np.int64)
    for end in range(len(line)):
        begins[end], best[end + 1] = end, best[end] + lengths[end] + looks[end]
        if end and sharing:
            common = _common(readings[line[end - 1]], readings[line[end]])
            np.minimum(shared[:end], min(common, shared[end]), out=shared[:end])
            np.maximum(bare[:end], bare[end], out=bare[:end])
            others = end - np.arange(end)
            cost = best[:end] + before[end + 1] - before[:end] - others * shared[:end]
            possible = (shared[:end] > 0) & (shared[:end] >= bare[:end])
            cost += np.where(possible, 2 * PASS_COST + looks[end], np.inf)
            start = int(cost.argmin())
            if cost[start] < best[end + 1]:
                begins[end], best[end + 1], prefix[end] = start, cost[start], shared[start]
    alone: list[int] = []
    groups = []
    end = len(line)
    while end:
        start = int(begins[end - 1])
        members = sorted(line[start:end], key=lambda index: len(readings[index].tokens))
        if prefix[end - 1]:
            groups.append((members, int(prefix[end - 1])))
        else:
            alone += members
        end = start
    alone.sort(key=lambda index: len(readings[index].tokens))
    groups.reverse()
    groups.sort(key=lambda group: (readings[group[0][0]].bare > 0, group[1]))
    return [*groups, (alone, 0)] if alone else groups


def _passes(
    readings: Sequence[Reading],
    groups: Sequence[int],
    prefixes: Sequence[int],
    batch_size: int,
    part_size: int,
    pass_tokens: int,
) -> tuple[Int64, Int64]:
    """Number of the pass and its prefix, for each example of a line of records.

    The cheapest cut of each part into runs of records, by dynamic programming.
    """
    forward, prefix = np.zeros((2, len(readings)), np.int64)
    count = 0
    step = part_size * batch_size
    for first in range(0, len(readings), step):
        last = min(first + step, len(readings))
        bounds = [*range(first, last, batch_size), last]
        records = [_Record.of(readings, groups, prefixes, *pair) for pair in pairwise(bounds)]
        for run in _cut(records, pass_tokens):
            span = slice(bounds[run.start], bounds[run.stop])
            forward[span] = count
            prefix[span] = min(records[number].prefix for number in run)
            count += 1
    return forward, prefix


class _Record(NamedTuple):
    rows: int
    longest: int
    group: int
    prefix: int
    """0 where its examples are of several groups."""
    bare: int
    """Where the last image of any of its examples ends."""

    @classmethod
    def of(
        cls,
        readings: Sequence[Reading],
        groups: Sequence[int],
        prefixes: Sequence[int],
        start: int,
        stop: int,
    ) -> _Record:
        longest = max(len(reading.tokens) for reading in readings[start:stop])
        one = groups[start] == groups[stop - 1]
        bare = max(reading.bare for reading in readings[start:stop])
        return cls(stop - start, longest, groups[start], prefixes[start] if one else 0, bare)

    def can_join(self, other: _Record) -> bool:
        """Whether their groups can have a pass in common, as far as the kind of input goes."""
        return bool(self.prefix and other.prefix) and (self.bare > 0) == (other.bare > 0)


def _cut(records: Sequence[_Record], pass_tokens: int) -> list[range]:
    """Runs of records, in order: of one group, or of whole groups behind the shortest prefix."""
    # Records without a prefix are alike, whatever their groups.
    units = [(record.prefix and record.group, record.prefix) for record in records]
    opens = [number == 0 or units[number - 1] != unit for number, unit in enumerate(units)]
    best = [0.0, *[np.inf] * len(records)]
    begins = [0] * len(records)
    for end in range(len(records)):
        is_whole = end + 1 == len(records) or opens[end + 1]
        rows = longest = bare = 0
        prefix, groups = records[end].prefix, 1
        for start in range(end, max(-1, end - MOST_RECORDS), -1):
            record = records[start]
            if start < end and opens[start + 1]:
                if not (is_whole and record.can_join(records[end])):
                    break
                groups += 1
            rows, longest = rows + record.rows, max(longest, record.longest)
            prefix, bare = min(prefix, record.prefix), max(bare, record.bare)
            tails, heads = rows * (longest - prefix), groups * prefix
            if start < end and tails > pass_tokens:
                break
            if groups > 1 and (heads > pass_tokens or prefix < bare):
                break
            if groups > 1 and not opens[start]:
                continue  # the first group would not be whole
            cost = best[start] + PASS_COST + tails
            if prefix and opens[start]:  # else the group's last pass left its prefix
                cost += PASS_COST + heads
            if cost < best[end + 1]:
                best[end + 1], begins[end] = cost, start
    runs, end = [], len(records)
    while end:
        runs.append(range(begins[end - 1], end))
        end = begins[end - 1]
    return runs[::-1]
