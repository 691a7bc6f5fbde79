"""The loss of a model that points: one softmax over the vocabulary and the pointers of the own sequence.

`reference` says what is computed, in a dozen lines of plain torch. `chunked` and `triton` compute the same
without ever holding `[positions, vocabulary]`: see `chunked.py` for how, `rows.py` and `triton_rows.py` for
the softmax and its gradient, `share.py` for a loss that ranks share. `pointer_cross_entropy` is the one
function to call.
"""

from v1lit.pointer.joint_loss.choice import choose_loss
from v1lit.pointer.joint_loss.cross_entropy import pointer_cross_entropy
from v1lit.pointer.joint_loss.reference import joint_logits
from v1lit.pointer.joint_loss.share import LossShare
from v1lit.pointer.joint_loss.terms import LossOptions, PointerLoss, Pointers, Reduction, or_one
from v1lit.pointer.joint_loss.verify import LossMismatchError, verify_pointer_loss

__all__ = [
    "LossMismatchError",
    "LossOptions",
    "LossShare",
    "PointerLoss",
    "Pointers",
    "Reduction",
    "choose_loss",
    "joint_logits",
    "or_one",
    "pointer_cross_entropy",
    "verify_pointer_loss",
]
