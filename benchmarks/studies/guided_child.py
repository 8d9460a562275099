"""One reader under atheris, for :mod:`cats.benchmarks.studies.guided_fuzz`: ``python -m ... READER FOLDER OPTION...``.

Nothing of the toolkit is imported before atheris can instrument it.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path


def main() -> None:
    """Fuzz until libFuzzer's options end it; an exception that is none of ours ends it with the input kept."""
    import atheris  # of no extra: the study says how to get it

    name, place, *options = sys.argv[1:]
    folder = Path(place)
    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["cats"]):
        from cats.benchmarks.studies.fuzz_readers import READERS
        from cats.core.errors import CatsError, VerificationError
        from cats.core.images import quiet_pillow

        quiet_pillow()
        reader = READERS[name]
        seeds = reader.seeds()
        for number, (suffix, data) in enumerate(seeds):  # imports what it imports when it is used
            path = folder / f"seed{number}{suffix}"
            path.write_bytes(data)
            with contextlib.suppress(CatsError):  # some are of files that are refused
                reader.read(path)
            path.unlink()
    suffixes = sorted({suffix for suffix, _ in seeds})
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, (suffix, data) in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(bytes([suffixes.index(suffix)]) + data)

    def read_one(data: bytes) -> None:
        """The first byte chooses the kind of file."""
        if not data:
            return
        path = folder / f"input{suffixes[data[0] % len(suffixes)]}"
        path.write_bytes(data[1:])
        try:
            reader.read(path)
        except CatsError as error:
            if isinstance(error, VerificationError) or "\n" in str(error):
                raise RuntimeError(f"an error of more than one line: {error!r}") from error

    atheris.Setup([sys.argv[0], *options, str(corpus)], read_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
