"""For those who add a backbone: everything that v1lit claims of a family, checked on its tiny version.

import pytest
from v1lit.testing import BACKBONE_CHECKS, check_backbone

@pytest.mark.parametrize("check", BACKBONE_CHECKS)
def test_my_family(check):
    check_backbone("my_family", check)
"""

from v1lit.testing.checks import BACKBONE_CHECKS, BackboneError, check_backbone
from v1lit.testing.models import build, inputs, packed_batch, processor, training_batch, training_examples
from v1lit.testing.parity import stock_logits
from v1lit.testing.patch_maps import assert_patch_map
from v1lit.training.self_test import assert_parity

__all__ = [
    "BACKBONE_CHECKS",
    "BackboneError",
    "assert_parity",
    "assert_patch_map",
    "build",
    "check_backbone",
    "inputs",
    "packed_batch",
    "processor",
    "stock_logits",
    "training_batch",
    "training_examples",
]
