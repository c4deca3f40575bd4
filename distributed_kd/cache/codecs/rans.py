"""An asymmetric numeral system (rANS, Duda 2013): a stack of symbols in one integer and a list of 32-bit words.

State x lies in [2^31, 2^63). A symbol that owns `frequency` of the 2^bits slots from `start` is pushed by
    x -> (x // frequency) * 2^bits + start + x % frequency
and popped by the exact inverse; words move between x and the stack so that x stays in its interval. What is pushed
last is popped first, so an encoder works backwards through the data and a decoder forwards. Both can also do the
other's step in between, which is how sets are coded without their order ("bits back", see `ids.py`).

A stream is 32-bit words: x (low word, high word), then the stack from its top. The steps below find it among others in
`words`, uint32: its stack from `top`, `HEAD` words after the stream's begin, to `end`, `place` being the next word to
pop. An encoder's stack lies on zeros that it may pop too; after the last symbol a decoder has x = 2^31 and only zeros
left, which is checked. That notices most damage, but not, for one, a flipped bit among raw bits: digests are for that.

All numbers are below 2^63 and integer: every platform computes the same.
"""

from __future__ import annotations

import numpy as np

from distributed_kd.cache.codecs.compiled import compiled, index, inlined

LOWEST = 1 << 31
UNIFORM_BITS = 20
SYMBOL_BITS = 15
SYMBOLS = 32  # in every table of small symbols
_GUIDE_BITS = 10
SMALL_COUNTS = 256
_STEPS = np.array([0] + [(1 << UNIFORM_BITS) // count for count in range(1, SMALL_COUNTS + 1)], np.int32)
HEAD = 2  # words before the stack: x
_WORD = 0xFFFFFFFF


@inlined
def advance(x, start, frequency, bits):  # type: ignore[no-untyped-def]
    """x after the symbol that owns these slots is popped, before `refill`."""
    return frequency * (x >> bits) + (x & ((1 << bits) - 1)) - start


@inlined
def refill(x, words, place, end):  # type: ignore[no-untyped-def]
    """(x, place), a word taken where x fell below its interval. Past the end, place stays at end + 1."""
    low = x < LOWEST
    if place >= end:
        return (np.int64(LOWEST), np.int64(end + 1)) if low else (x, place)
    word = np.int64(words[index(place)])
    return ((x << 32) | word if low else x), (place + 1 if low else place)  # no branch on x: it would be mispredicted


@inlined
def push(x, words, place, top, end, start, frequency, bits):  # type: ignore[no-untyped-def]
    """(x, place) with a symbol pushed; `frequency` < 2^bits. Where a word has no room, place is end + 1."""
    if (x >> (63 - bits)) >= frequency:
        if place <= top or place > end:
            return np.int64(LOWEST), np.int64(end + 1)
        place -= 1
        words[place] = x & _WORD
        x >>= 32
    whole = np.int64(np.uint64(x) // np.uint64(frequency))  # unsigned: there is no rounding to see to
    return (whole << bits) + start + (x - whole * frequency), place


@inlined
def uniform_step(count):  # type: ignore[no-untyped-def]
    """How many of 2^20 slots each of `count` <= 2^20 equally likely ones owns; the last owns the rest too."""
    if count <= SMALL_COUNTS:
        return np.int64(_STEPS[count])
    return (1 << UNIFORM_BITS) // count


@inlined
def pop_uniform(x, words, place, end, count):  # type: ignore[no-untyped-def]
    """(number, x, place), number < count."""
    step = uniform_step(count)
    number = min((x & ((1 << UNIFORM_BITS) - 1)) // step, count - 1)
    frequency = step if number < count - 1 else (1 << UNIFORM_BITS) - number * step
    x, place = refill(advance(x, number * step, frequency, UNIFORM_BITS), words, place, end)
    return number, x, place


@inlined
def push_uniform(x, words, place, top, end, number, count):  # type: ignore[no-untyped-def]
    """(x, place); `count` >= 2."""
    step = uniform_step(count)
    frequency = step if number < count - 1 else (1 << UNIFORM_BITS) - number * step
    return push(x, words, place, top, end, number * step, frequency, UNIFORM_BITS)


@inlined
def pop_bits(x, words, place, end, bits):  # type: ignore[no-untyped-def]
    """(value, x, place): `bits` <= 20 bits as they are."""
    value = x & ((1 << bits) - 1)
    x, place = refill(x >> bits, words, place, end)
    return value, x, place


@inlined
def pop_symbol(x, words, place, end, starts, context):  # type: ignore[no-untyped-def]
    """(symbol, x, place). starts: [contexts, 33 + 32] uint16, see `with_guide`."""
    slot = x & ((1 << SYMBOL_BITS) - 1)
    symbol = np.int64(starts[index(context), index(SYMBOLS + 1 + (slot >> _GUIDE_BITS))])
    while starts[index(context), index(symbol + 1)] <= slot:
        symbol += 1
    start = np.int64(starts[index(context), index(symbol)])
    frequency = np.int64(starts[index(context), index(symbol + 1)]) - start
    x, place = refill(advance(x, start, frequency, SYMBOL_BITS), words, place, end)
    return symbol, x, place


def with_guide(starts: np.ndarray) -> np.ndarray:
    """[contexts, 33] first slots of 32 symbols, and 2^15, to [contexts, 33 + 32] uint16: followed by the symbol of each
    1024th slot, from where a search needs a step or two. Narrow, since a decoder waits for what is not near it."""
    guides = [np.searchsorted(row, np.arange(SYMBOLS) << _GUIDE_BITS, "right") - 1 for row in starts]
    return np.concatenate([starts, np.array(guides).reshape(len(starts), SYMBOLS)], axis=1).astype(np.uint16)


@compiled
def push_events(events, count, starts, words):  # type: ignore[no-untyped-def]
    """Pushes events, the last first, onto an empty stack at the end of `words`; returns (x, place).

    events: [., 2] int32. (context, symbol) is a symbol under starts[context]; (-bits, value) is so many bits.
    """
    x, place = np.int64(LOWEST), np.int64(len(words))
    top, end = np.int64(HEAD), np.int64(len(words))
    for event in range(count - 1, -1, -1):
        context, symbol = np.int64(events[event, 0]), np.int64(events[event, 1])
        if context < 0:
            x, place = push(x, words, place, top, end, symbol, np.int64(1), -context)
        else:
            start = np.int64(starts[context, symbol])
            frequency = np.int64(starts[context, symbol + 1]) - start
            x, place = push(x, words, place, top, end, start, frequency, SYMBOL_BITS)
    return x, place


@inlined
def begin(words, top, end):  # type: ignore[no-untyped-def]
    """(x, place) at the top of a stream; place is end + 1 where x is out of bounds."""
    x = (np.int64(words[top - 1] & 0x7FFFFFFF) << 32) | np.int64(words[top - 2])
    if words[top - 1] > 0x7FFFFFFF or x < LOWEST:
        return np.int64(LOWEST), np.int64(end + 1)
    return x, np.int64(top)


@compiled
def finish(x, words, place):  # type: ignore[no-untyped-def]
    """Puts x before the stack; returns where the stream begins in `words`."""
    words[place - 1] = x >> 32
    words[place - 2] = x & _WORD
    return place - HEAD


@inlined
def is_whole(x, words, place, end):  # type: ignore[no-untyped-def]
    """Whether everything pushed has been popped."""
    whole = x == LOWEST and place <= end
    for rest in range(place, end):
        whole = whole and words[rest] == 0
    return whole
