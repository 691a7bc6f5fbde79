"""What planning an epoch of shards needs: lengths, rows and steps."""

from __future__ import annotations

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from v1lit.data.lengths.lookup import LengthLookup
from v1lit.data.lengths.store import known_table, measured_table
from v1lit.data.lengths.table import LengthTable
from v1lit.data.loading.context import LoaderContext
from v1lit.data.loading.reading import Encoder
from v1lit.data.loading.sequence import OpenedSequence
from v1lit.data.loading.step_count import EpochSteps
from v1lit.data.sampling.grouping import Grouping


def length_tables(
    opened: OpenedSequence, grouping: Grouping, encoder: Encoder, measure: bool = False
) -> list[LengthTable | None]:
    """Lengths of the examples of every source, as far as rows need them and they are known.

    measure: those that are not known, on a local disk.
    """
    needed = grouping.packs or grouping.by_length > 1
    if not needed or (encoder.map is not None and encoder.map.random):
        return [None] * len(opened.catalogs)
    make, options = measured_table if measure else known_table, encoder.length_options
    return [make(catalog, options) for catalog in opened.catalogs]


def epoch_steps(
    opened: OpenedSequence, grouping: Grouping, encoder: Encoder, context: LoaderContext
) -> EpochSteps:
    """The rows of an epoch of shards, and how many steps they make."""
    tables = length_tables(opened, grouping, encoder)
    lengths = LengthLookup(opened.examples, tables, encoder.length_options)
    return EpochSteps(opened, grouping, lengths, context)


def say_what_is_unknown(steps: EpochSteps, encoder: Encoder) -> None:
    """Say what follows where shards have no index, and where lengths are not known."""
    if not steps.opened.indexed:
        without = ", ".join(catalog.location for catalog in steps.opened.catalogs if not catalog.indexed)
        rank_zero_info(
            f"{without}: no index, so the length of an epoch and the remaining time are not known, every "
            "rank reads all shards, and resuming reads them again up to where the run stopped; "
            "`v1lit data index` makes one"
        )
    if steps.grouping.packs and not steps.lengths.known:
        random = encoder.map is not None and encoder.map.random
        once = (
            ", because data.map is random"
            if random
            else "; `v1lit data index --lengths RECIPE` measures them once, for an index on a local disk"
        )
        rank_zero_info(
            "lengths are measured while rows are planned, by the training process, which reads every "
            f"example for it{once}"
        )
