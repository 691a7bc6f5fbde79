"""Where and when a model may look: rules on what it generates, as logits processors of transformers."""

from v1lit.revisit.suppression import Suppression
from v1lit.steering.grammar_rule import GrammarRule
from v1lit.steering.looks import MaxLooks, MaxPointers
from v1lit.steering.options import Steering
from v1lit.steering.places import Connected, Places
from v1lit.steering.vocabulary import Vocabulary

__all__ = [
    "Connected",
    "GrammarRule",
    "MaxLooks",
    "MaxPointers",
    "Places",
    "Steering",
    "Suppression",
    "Vocabulary",
]
