"""Which ops copy, move or create entries without computing any?

Exact: every entry of y is an entry of x or a stated constant. Views, copies, padding and
concatenation; no sum, no product, no choice by value.
"""

import torch

from numgeom.ops.drawing import booleans, integers, several, swapped, whole_numbers, wild
from numgeom.ops.entry import Op
from numgeom.ops.examples import example, normal
from numgeom.ops.movement import movement
from numgeom.ops.traits import DROPS, REARRANGES, REPEATS, RESHAPES, Moves, Places

_INTO = Moves(Places.AT_MOST_ONCE, data=(0, 1))
_IN_MEMORY = Moves(Places.ANY, in_memory=True)
_INTO_MEMORY = Moves(Places.AT_MOST_ONCE, data=(0, 1), in_memory=True)
_INTO_PARTS = Moves(Places.ONCE, parts=True)
_JOINED = Moves(Places.ONCE, joins=True)
_AMONG_ZEROS = Moves(Places.ONCE, fills=True)
_DROPS_AMONG_ZEROS = Moves(Places.AT_MOST_ONCE, fills=True)
_REPEATS_AMONG_ZEROS = Moves(Places.ANY, fills=True)

EXACT: tuple[Op, ...] = (
    # The same entries in another shape.
    movement(
        "view", example(wild(2, 6), [3, 4]), example(integers(0, 9, 4), [2, 2]), moves=RESHAPES
    ),
    movement("_unsafe_view", example(wild(2, 6), [3, 4]), moves=RESHAPES),
    movement("_reshape_alias", example(wild(2, 6), [3, 4], [4, 1]), moves=RESHAPES),
    movement("permute", example(wild(2, 3, 4), [2, 0, 1]), example(wild(1), [0]), moves=REARRANGES),
    movement(
        "transpose",
        example(wild(2, 3), 0, 1),
        example(swapped(normal(2, 3)), 1, 0),
        moves=REARRANGES,
    ),
    movement("t", example(wild(2, 3)), example(booleans(2, 3)), example(wild(3)), moves=REARRANGES),
    movement("expand", example(wild(3, 1), [2, 3, 4]), example(wild(), [2]), moves=REPEATS),
    movement("squeeze", example(wild(1, 3, 1)), example(wild(1, 3, 1), [0, 2]), moves=RESHAPES),
    movement("unsqueeze", example(wild(3), 0), example(wild(), 0), moves=RESHAPES),
    movement("as_strided", example(wild(3, 4), [2, 2], [4, 1], 1), moves=_IN_MEMORY),
    movement(
        "unfold", example(wild(7), 0, 3, 2), example(swapped(wild(4, 5)), 1, 2, 1), moves=REPEATS
    ),
    movement("pixel_shuffle", example(wild(1, 4, 2, 3), 2), moves=REARRANGES),
    movement("pixel_unshuffle", example(wild(1, 2, 4, 6), 2), moves=REARRANGES),
    movement("channel_shuffle", example(wild(1, 4, 2, 2), 2), moves=REARRANGES),
    # A part of the entries.
    movement("slice", example(wild(5, 3), 0, 1, 5, 2), example(wild(0, 3), 0, 0, 4), moves=DROPS),
    movement(
        "narrow_copy", example(wild(5, 3), 0, 1, 3), example(wild(2, 4), -1, 0, 2), moves=DROPS
    ),
    movement("select", example(wild(5, 3), 1, -1), example(booleans(5, 3), 0, 2), moves=DROPS),
    movement("diagonal", example(wild(3, 4)), example(wild(2, 3, 3), 1, 1, 2), moves=DROPS),
    movement("split", example(wild(5, 2), 2), example(wild(5, 2), 3, -1), moves=_INTO_PARTS),
    movement("split_with_sizes", example(wild(5, 2), [1, 0, 4]), moves=_INTO_PARTS),
    movement("unsafe_split", example(wild(5, 2), 2), moves=_INTO_PARTS),
    movement("unsafe_split_with_sizes", example(wild(5, 2), [2, 3]), moves=_INTO_PARTS),
    movement("chunk", example(wild(5, 2), 2), moves=_INTO_PARTS),
    movement("unsafe_chunk", example(wild(5, 2), 2), moves=_INTO_PARTS),
    movement("unbind", example(wild(3, 2)), example(wild(3, 2), 1), moves=_INTO_PARTS),
    # The same entries, copied.
    movement("clone", example(wild(3, 2)), example(booleans(3)), example(wild(0)), moves=RESHAPES),
    movement("alias", example(wild(3, 2)), moves=RESHAPES),
    movement("detach", example(wild(3, 2)), moves=RESHAPES),
    movement("lift_fresh", example(wild(3)), moves=RESHAPES),
    movement("lift_fresh_copy", example(wild(3)), moves=RESHAPES),
    movement("contiguous", example(swapped(wild(3, 2))), moves=RESHAPES),
    movement("repeat", example(wild(2, 3), [2, 1, 2]), example(wild(2), [0]), moves=REPEATS),
    movement("flip", example(wild(2, 3), [1]), example(wild(2, 3), [0, 1]), moves=REARRANGES),
    movement("roll", example(wild(2, 3), [1], [1]), example(wild(5), [-2]), moves=REARRANGES),
    movement("rot90", example(wild(2, 3), 1, [0, 1]), moves=REARRANGES),
    # Entries beside others.
    movement(
        "cat",
        example(several(wild(2, 3), wild(1, 3)), 0),
        example(several(wild(2)), 0),
        moves=_JOINED,
    ),
    movement("stack", example(several(wild(2, 3), wild(2, 3)), 1), moves=_JOINED),
    movement("slice_scatter", example(wild(5, 2), wild(2, 2), 0, 1, 5, 2), moves=_INTO),
    movement("select_scatter", example(wild(5, 2), wild(5), 1, 0), moves=_INTO),
    movement("diagonal_scatter", example(wild(3, 4), wild(3)), moves=_INTO),
    movement(
        "as_strided_scatter", example(wild(3, 4), wild(2, 2), [2, 2], [4, 1], 1), moves=_INTO_MEMORY
    ),
    # Entries beside zeros or a constant.
    movement(
        "tril",
        example(wild(3, 4)),
        example(wild(3, 3), -1),
        example(booleans(3, 3)),
        moves=_DROPS_AMONG_ZEROS,
    ),
    movement("triu", example(wild(3, 4), 1), moves=_DROPS_AMONG_ZEROS),
    movement("diag_embed", example(wild(2, 3)), example(wild(3), 1), moves=_AMONG_ZEROS),
    movement("slice_backward", example(wild(2, 3), [5, 3], 0, 1, 5, 2), moves=_AMONG_ZEROS),
    movement("select_backward", example(wild(3), [5, 3], 0, -2), moves=_AMONG_ZEROS),
    movement("diagonal_backward", example(wild(3), [3, 4], 0, 0, 1), moves=_AMONG_ZEROS),
    movement(
        "constant_pad_nd",
        example(wild(2, 3), [1, 2, 0, 1]),
        example(wild(2, 3), [1, -1], float("-inf")),
        example(whole_numbers(-2, 3, 2, 3), [0, 1], 3.5),
        constants=((2, "value"),),
        moves=_DROPS_AMONG_ZEROS,
    ),
    movement(
        "im2col",
        example(wild(1, 2, 4, 4), [2, 2], [1, 1], [1, 0], [2, 1]),
        moves=_REPEATS_AMONG_ZEROS,
    ),
    # Entries beside copies of them.
    movement("reflection_pad1d", example(wild(1, 2, 4), [2, 1]), moves=REPEATS),
    movement("reflection_pad2d", example(wild(1, 3, 4), [2, 1, 0, 2]), moves=REPEATS),
    movement("reflection_pad3d", example(wild(1, 3, 3, 2), [1, 1, 0, 2, 1, 0]), moves=REPEATS),
    movement("replication_pad1d", example(wild(1, 2, 4), [2, 3]), moves=REPEATS),
    movement("replication_pad2d", example(wild(1, 3, 4), [2, 1, 0, 4]), moves=REPEATS),
    movement("replication_pad3d", example(wild(1, 3, 3, 2), [1, 1, 0, 2, 1, 0]), moves=REPEATS),
    # A padded batch of sequences, its entries in order of time.
    movement(
        "_pack_padded_sequence",
        example(wild(3, 2, 2), lambda _: torch.tensor([3, 1]), False),
        moves=DROPS,
    ),
)
