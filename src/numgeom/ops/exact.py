"""Which ops copy, move or create entries without computing any?

Exact: every entry of y is an entry of x or a stated constant. Views, copies, padding and
concatenation; no sum, no product, no choice by value.
"""

import torch

from numgeom.ops.drawing import booleans, integers, several, swapped, whole_numbers, wild
from numgeom.ops.entry import Op
from numgeom.ops.examples import example, normal
from numgeom.ops.movement import movement

EXACT: tuple[Op, ...] = (
    # The same entries in another shape.
    movement("view", example(wild(2, 6), [3, 4]), example(integers(0, 9, 4), [2, 2])),
    movement("_unsafe_view", example(wild(2, 6), [3, 4])),
    movement("_reshape_alias", example(wild(2, 6), [3, 4], [4, 1])),
    movement("permute", example(wild(2, 3, 4), [2, 0, 1]), example(wild(1), [0])),
    movement("transpose", example(wild(2, 3), 0, 1), example(swapped(normal(2, 3)), 1, 0)),
    movement("t", example(wild(2, 3)), example(booleans(2, 3)), example(wild(3))),
    movement("expand", example(wild(3, 1), [2, 3, 4]), example(wild(), [2])),
    movement("squeeze", example(wild(1, 3, 1)), example(wild(1, 3, 1), [0, 2])),
    movement("unsqueeze", example(wild(3), 0), example(wild(), 0)),
    movement("as_strided", example(wild(3, 4), [2, 2], [4, 1], 1)),
    movement("unfold", example(wild(7), 0, 3, 2), example(swapped(wild(4, 5)), 1, 2, 1)),
    movement("pixel_shuffle", example(wild(1, 4, 2, 3), 2)),
    movement("pixel_unshuffle", example(wild(1, 2, 4, 6), 2)),
    movement("channel_shuffle", example(wild(1, 4, 2, 2), 2)),
    # A part of the entries.
    movement("slice", example(wild(5, 3), 0, 1, 5, 2), example(wild(0, 3), 0, 0, 4)),
    movement("select", example(wild(5, 3), 1, -1), example(booleans(5, 3), 0, 2)),
    movement("diagonal", example(wild(3, 4)), example(wild(2, 3, 3), 1, 1, 2)),
    movement("split", example(wild(5, 2), 2), example(wild(5, 2), 3, -1)),
    movement("split_with_sizes", example(wild(5, 2), [1, 0, 4])),
    movement("unsafe_split", example(wild(5, 2), 2)),
    movement("unsafe_split_with_sizes", example(wild(5, 2), [2, 3])),
    movement("chunk", example(wild(5, 2), 2)),
    movement("unsafe_chunk", example(wild(5, 2), 2)),
    movement("unbind", example(wild(3, 2)), example(wild(3, 2), 1)),
    # The same entries, copied.
    movement("clone", example(wild(3, 2)), example(booleans(3)), example(wild(0))),
    movement("alias", example(wild(3, 2))),
    movement("detach", example(wild(3, 2))),
    movement("lift_fresh", example(wild(3))),
    movement("lift_fresh_copy", example(wild(3))),
    movement("contiguous", example(swapped(wild(3, 2)))),
    movement("repeat", example(wild(2, 3), [2, 1, 2]), example(wild(2), [0])),
    movement("flip", example(wild(2, 3), [1]), example(wild(2, 3), [0, 1])),
    movement("roll", example(wild(2, 3), [1], [1]), example(wild(5), [-2])),
    movement("rot90", example(wild(2, 3), 1, [0, 1])),
    # Entries beside others.
    movement("cat", example(several(wild(2, 3), wild(1, 3)), 0), example(several(wild(2)), 0)),
    movement("stack", example(several(wild(2, 3), wild(2, 3)), 1)),
    movement("slice_scatter", example(wild(5, 2), wild(2, 2), 0, 1, 5, 2), data=(0, 1)),
    movement("select_scatter", example(wild(5, 2), wild(5), 1, 0), data=(0, 1)),
    movement("diagonal_scatter", example(wild(3, 4), wild(3)), data=(0, 1)),
    movement("as_strided_scatter", example(wild(3, 4), wild(2, 2), [2, 2], [4, 1], 1), data=(0, 1)),
    # Entries beside zeros or a constant.
    movement("tril", example(wild(3, 4)), example(wild(3, 3), -1), example(booleans(3, 3))),
    movement("triu", example(wild(3, 4), 1)),
    movement("diag_embed", example(wild(2, 3)), example(wild(3), 1)),
    movement("slice_backward", example(wild(2, 3), [5, 3], 0, 1, 5, 2)),
    movement("select_backward", example(wild(3), [5, 3], 0, -2)),
    movement("diagonal_backward", example(wild(3), [3, 4], 0, 0, 1)),
    movement(
        "constant_pad_nd",
        example(wild(2, 3), [1, 2, 0, 1]),
        example(wild(2, 3), [1, -1], float("-inf")),
        example(whole_numbers(-2, 3, 2, 3), [0, 1], 3.5),
        constants=((2, "value"),),
    ),
    movement("im2col", example(wild(1, 2, 4, 4), [2, 2], [1, 1], [1, 0], [2, 1])),
    # Entries beside copies of them.
    movement("reflection_pad1d", example(wild(1, 2, 4), [2, 1])),
    movement("reflection_pad2d", example(wild(1, 3, 4), [2, 1, 0, 2])),
    movement("reflection_pad3d", example(wild(1, 3, 3, 2), [1, 1, 0, 2, 1, 0])),
    movement("replication_pad1d", example(wild(1, 2, 4), [2, 3])),
    movement("replication_pad2d", example(wild(1, 3, 4), [2, 1, 0, 4])),
    movement("replication_pad3d", example(wild(1, 3, 3, 2), [1, 1, 0, 2, 1, 0])),
    # A padded batch of sequences, its entries in order of time.
    movement(
        "_pack_padded_sequence",
        example(wild(3, 2, 2), lambda _: torch.tensor([3, 1]), False),
    ),
)
