"""The facts about every content of a scan. They stay in the cache, so that memory does not follow the number of files:
who needs them reads a few columns of all, or all columns of some after the others."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import polars as pl

from pipeline.errors import ValidationError
from pipeline.validation.probe import facts_cache
from pipeline.validation.tables import FACTS


class KnownFacts:
    """FACTS, one row for each content."""

    def __init__(self, store: Path, contents: pl.DataFrame, tars: Collection[str], others: pl.DataFrame) -> None:
        """
        Args:
            store: the part of the cache that holds them.
            contents: sha256 of each.
            tars: those whose facts still hold, by the names under which the cache has them.
            others: the contents that the cache does not hold, with its columns.

        Raises:
            ValidationError: the cache does not hold all the rest.
        """
        self._store, self._others = store, others
        places = [
            rows.filter(pl.col("tar").is_in(list(tars))).select("sha256", part=pl.lit(name))
            for name, rows in facts_cache.portions(store, ["sha256", "tar"])
        ]
        known = pl.concat([pl.DataFrame(schema={"sha256": pl.String, "part": pl.String}), *places])
        asked = contents.join(others, "sha256", "anti")
        self._places = known.join(asked, "sha256", "semi").unique("sha256", keep="first", maintain_order=True)
        if self._places.height < asked.height:
            raise self._changed()

    def select(self, columns: Sequence[str]) -> pl.DataFrame:
        """These columns of all, in any order; sha256 is among them."""
        return pl.concat(self.portions(columns))

    def portions(self, columns: Sequence[str] = tuple(FACTS)) -> Iterator[pl.DataFrame]:
        """These columns of all, some contents after the others; sha256 is among them."""
        yield self._others.select(columns)
        for (name,), contents in self._places.group_by("part", maintain_order=True):
            if (rows := facts_cache.load(self._store, str(name), columns)) is None:
                raise self._changed()
            yield rows.join(contents, "sha256", "semi").unique("sha256", keep="first")

    def sketches(self, contents: pl.DataFrame) -> pl.DataFrame:
        """sha256 and sketch of these contents."""
        return self._of(contents, "sketch")

    def tars(self, contents: Collection[str]) -> set[str]:
        """In which tars the bytes of these contents are, as the cache names them."""
        return set(self._of(pl.DataFrame({"sha256": list(contents)}, {"sha256": pl.String}), "tar")["tar"])

    def _of(self, contents: pl.DataFrame, column: str) -> pl.DataFrame:
        asked = contents.select("sha256").unique()
        return pl.concat([rows.join(asked, "sha256", "semi") for rows in self.portions(["sha256", column])])

    def _changed(self) -> ValidationError:
        return ValidationError(f"{self._store}: another process has changed it, or it is damaged; run again")
