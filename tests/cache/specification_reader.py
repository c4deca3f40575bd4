"""A reader of compact-1 written from docs/cache-format.md: nothing of this package, no numpy, a word at a time."""

import json
import struct

import zstandard

KINDS = {"|u1": "B", "<u2": "H", "<u4": "I", "<i4": "i"}


class Stream:
    def __init__(self, data):
        self.words = list(struct.unpack(f"<{len(data) // 4}I", data))
        self.x, self.place = self.words[1] << 32 | self.words[0], 2
        assert 2**31 <= self.x < 2**63

    def slot(self, bits):
        return self.x & ((1 << bits) - 1)

    def take(self, start, frequency, bits):
        self.x = frequency * (self.x >> bits) + self.slot(bits) - start
        if self.x < 2**31:
            self.x = self.x << 32 | self.words[self.place]
            self.place += 1

    def put(self, start, frequency, bits):
        if self.x >= frequency << (63 - bits):
            self.place -= 1
            self.words[self.place] = self.x & (2**32 - 1)
            self.x >>= 32
        self.x = ((self.x // frequency) << bits) + start + self.x % frequency

    def symbol(self, starts):
        s = max(n for n in range(len(starts) - 1) if starts[n] <= self.slot(15))
        self.take(starts[s], starts[s + 1] - starts[s], 15)
        return s

    def raw(self, bits):
        value = self.slot(bits)
        self.take(value, 1, bits)
        return value

    def number(self, s):
        if s < 8:
            return s
        if s == 28:
            return self.raw(20)
        b = 2 + (s - 8) // 2
        return ((2 + s % 2) << b) + self.raw(b)

    def end(self):
        assert self.x == 2**31 and not any(self.words[self.place :])


def index_slots(index, count):
    step = 2**20 // count
    return index * step, step if index < count - 1 else 2**20 - (count - 1) * step


def log(v, f):
    b = v.bit_length()
    return b << f if b <= f else (b << f) + (v >> (b - 1 - f)) - (1 << f)


def clip(v, low, high):
    return min(max(v, low), high)


def running(shares):
    starts = [0]
    for share in shares:
        starts.append(starts[-1] + share)
    return starts


def slots(weights):
    n, total = len(weights), max(1, sum(weights))
    shares = [w * (2**15 - n) // total + 1 for w in weights]
    shares[weights.index(max(weights))] += 2**15 - sum(shares)
    return running(shares)


def contexts(counts, group_of):
    groups = {}
    for context, row in enumerate(counts):
        group = groups.setdefault(group_of(context), [0] * 32)
        groups[group_of(context)] = [a + b for a, b in zip(group, row, strict=True)]
    smooth = {g: [p * 4096 // max(1, sum(row)) + 1 for p in row] for g, row in groups.items()}
    return [
        slots([1024 * c + p for c, p in zip(row, smooth[group_of(context)], strict=True)])
        for context, row in enumerate(counts)
    ]


def level_group(context):
    if context == 0:
        return 0
    return ((context - 1) // 384, (context - 1) % 16) if context < 1537 else (context - 1537) // 32 + 10**6


def bands(values, m):
    logs = [log(v, 4) for v in values]
    return [(logs[0] - one) * m // (logs[0] - logs[-1] + 1) for one in logs]


class Tables:
    def __init__(self, data):
        assert data[:13] == b"dkd-tables-1\n"
        body = zstandard.ZstdDecompressor().decompress(data[13:])
        (length,) = struct.unpack_from("<I", body)
        self.header, place, a = json.loads(body[4 : 4 + length]), 4 + length, {}
        for name, kind, shape in self.header["arrays"]:
            count = 1
            for side in shape:
                count *= side
            flat = list(struct.unpack_from(f"<{count}{KINDS[kind]}", body, place))
            place += struct.calcsize(f"<{count}{KINDS[kind]}")
            a[name] = [flat[n : n + shape[1]] for n in range(0, count, shape[1])] if len(shape) == 2 else flat
        self.a = a
        self.tail = contexts(a["tail_counts"], lambda context: context // 32)
        self.levels = contexts(a["level_counts"], level_group)
        types = len(a["type_sizes"])
        columns = [sum(row[t] for row in a["given_counts"]) for t in range(types)]
        more = [(4096 * q + 1) // max(1, sum(columns)) for q in columns]
        self.given = [
            slots([4096 * c + 8 * (q + 1) for c, q in zip(row, more, strict=True)]) for row in a["given_counts"]
        ]
        self.class_of = dict(zip(a["class_tokens"], a["class_of_token"], strict=True))
        self._types(types)

    def _types(self, types):
        a, seen = self.a, self.a["seen_ids"]
        counts, place = [[0] * len(seen) for _ in range(types)], 0
        for t, size in enumerate(a["type_sizes"]):
            at = -1
            for gap, count in zip(
                a["type_gaps"][place : place + size], a["type_counts"][place : place + size], strict=True
            ):
                at += gap
                counts[t][at] = count
            place += size
        everywhere = [sum(row[n] for row in counts) for n in range(len(seen))]
        total, escaped = max(1, sum(everywhere)), [0] * len(seen)
        self.types = []  # (starts, shares, members of each class)
        for own in counts:
            scale = sum(own) + 300
            back = [(300 * e * 2**20) // (total * scale) for e in everywhere]
            once = [n == 1 and b < 16 for n, b in zip(own, back, strict=True)]
            escaped = [e + o for e, o in zip(escaped, once, strict=True)]
            room = 2**20 * (scale - min(sum(once) + 1, scale // 2)) // scale
            want = [((n * 2**20 // scale + b) * (room >> 4)) >> 16 for n, b in zip(own, back, strict=True)]
            rows = sorted((n for n in range(len(seen)) if want[n] >= 16), key=lambda n: (-want[n], n))
            members, sums = [[] for _ in range(32)], [0] * 32
            for n, band in zip(rows, bands([want[n] for n in rows], 31), strict=True):
                members[band + 1].append(seen[n])
                sums[band + 1] += want[n]
            shares = [s // max(1, len(m)) for s, m in zip(sums, members, strict=True)]
            widths = [s * len(m) for s, m in zip(shares, members, strict=True)]
            widths[0] = shares[0] = min(2**20 - sum(widths), 2**20 - 1)
            self.types.append((running(widths), shares, members))
        vocabulary = self.header["vocabulary_size"]
        count = dict(zip(seen, everywhere, strict=True))
        order = sorted(range(vocabulary), key=lambda i: (-count.get(i, 0), i))
        found = [i for i in order if count.get(i, 0)]
        self.bands, weights = [[] for _ in range(32)], [0] * 32
        for i, band in zip(found, bands([count[i] for i in found], 31), strict=True):
            self.bands[band].append(i)
            weights[band] += escaped[seen.index(i)]
        self.bands[31] = order[len(found) :]
        weights[31] += sum(e == 1 for e in everywhere) + 1
        self.all = slots(weights)


def read_tail(data, positions, tables):
    stream, rows = Stream(data), []
    for _ in range(positions):
        row, before = [], 0
        for g in range(len(tables.header["temperatures"])):
            n = stream.symbol(tables.tail[64 * g + before])
            if n == 31:
                row.append(-(2**23))
            elif n == 0:
                row.append(4096 * stream.raw(12) + stream.raw(12) - 2**23)
            else:
                m = stream.symbol(tables.tail[64 * g + 32 + n])
                row.append(1024 * n + 32 * m + stream.raw(5) - 2**14)
            before = n
        rows.append(row)
    stream.end()
    return rows


def read_levels(data, tails, tables):
    stream, rows = Stream(data), []
    a, header = tables.a, tables.header
    weights, draws, highest = a["weights"], header["draws"], len(a["weights"]) - 1
    for tail in tails:
        number = tail[header["reference"]]
        mass = 2**20 if number == -(2**23) else a["odds_mass"][clip((number >> 4) + 1024, 0, 2047)]
        rest, row, bound = header["width"], [], highest
        if draws:
            mass = draws * weights[1]
        else:
            rest -= stream.number(stream.symbol(tables.levels[0]))
        while rest > 0 and not (draws and mass == 0):
            bound = min(bound, min(a["within"][min(mass >> 10, 1024)] + 2, highest))
            ratio = clip(log(16 * mass // (weights[bound] + 1) + 1, 1) - 4, 0, 15)
            s = stream.symbol(tables.levels[1 + (min(len(row), 3) * 24 + min(log(bound + 1, 1), 23)) * 16 + ratio])
            if s == 29:
                break
            bound = stream.raw(13) if s == 30 else bound - stream.number(s)
            row.append(bound)
            mass, rest = max(mass - weights[bound], 0), rest - 1
        level = header["dense_top"]
        while rest > 0 and level > (1 if draws else 0) and not (draws and mass == 0):
            fill = log(64 * mass // ((1 if draws else rest) * weights[level] + 1) + 1, 2) - 20
            s = stream.symbol(tables.levels[1537 + 32 * level + clip(fill, 0, 31)])
            run = rest if s == 31 else stream.number(s)
            row += [level] * run
            mass, rest, level = max(mass - run * weights[level], 0), rest - run, level - 1
        rows.append(row + ([1] * (mass // weights[1]) if draws else [0] * rest))
    stream.end()
    return rows


def read_ids(data, levels, tokens, tables):
    stream, rows = Stream(data), []
    for row_levels, token in zip(levels, tokens, strict=True):
        given = tables.given[tables.class_of.get(token, len(tables.types))]
        starts, shares, members = tables.types[stream.symbol(given) if len(tables.types) > 1 else 0]
        row, of_set = [], []
        for k, level in enumerate(row_levels):
            if k < 2 or level != row_levels[k - 1] or len(of_set) == 256:
                of_set = []
            slot = stream.slot(20)
            c = max(n for n in range(32) if starts[n] <= slot)
            j = (slot - starts[c]) // shares[c]
            stream.take(starts[c] + j * shares[c], shares[c], 20)
            if c > 0:
                found = members[c][j]
            else:
                band = tables.bands[stream.symbol(tables.all)]
                index = min(stream.slot(20) // (2**20 // len(band)), len(band) - 1)
                stream.take(*index_slots(index, len(band)), 20)
                found = band[index]
            of_set.append(found)
            if len(of_set) > 1:
                index = sum(other < found for other in of_set[:-1])
                stream.put(*index_slots(index, len(of_set)), 20)
            row.append(found)
        rows.append(row)
    stream.end()
    return rows


def read_sequence(streams, tokens, tables):
    """[(ids, logits, tail odds)] by position; streams: {column: bytes}."""
    tails = read_tail(streams["tail"], len(tokens), tables)
    levels = read_levels(streams["levels"], tails, tables)
    ids = read_ids(streams["ids"], levels, tokens, tables)
    values = tables.a["values"]
    return [
        (
            row,
            [(values[n] - values[ls[0]]) / 65536 for n in ls],
            [float("-inf") if t == -(2**23) else t / 1024 for t in ts],
        )
        for row, ls, ts in zip(ids, levels, tails, strict=True)
    ]
