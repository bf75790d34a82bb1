"""The shipped small models: ``python -m traces.pretrain --arch opt|llama --out DIR [--resume]``.

Byte-level BPE of 2048 tokens and two causal models of about 3M parameters in transformers' own classes,
trained on the Python standard library by one CPU core within half an hour each.
"""

from __future__ import annotations

import json
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.base import console
from simulator.base.errors import InputError, UnknownNameError
from traces.corpus import SEPARATOR, Corpus, baselines, sha256, standard_library
from traces.training import CONTEXT, fit, heldout_loss

if TYPE_CHECKING:
    import torch

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

VOCABULARY = 2048
PAD = "<|pad|>"
ARCHITECTURES = {"opt": "tiny-opt-py", "llama": "tiny-llama-py"}
SAMPLE_PROMPT = "def read_lines(path, encoding='utf-8'):\n    "
NOTICE = """heldout.txt is a part of the standard library of Python {python}: its files {files},
in this order, with <|endoftext|> between them, otherwise unchanged. The models beside it were trained on the rest of
that library by `python -m traces.pretrain`. The library's licence, as it came with it:

{licence}"""


def tokenizer(text: str) -> Any:
    """Byte-level BPE trained on `text`; id 0 ends a document, id 1 pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[SEPARATOR, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(text.split(f"{SEPARATOR}\n"), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def new_model(arch: str) -> torch.nn.Module:
    """Random weights: OPT (ReLU, learned positions) or Llama (SwiGLU, RoPE, 8 query on 4 KV heads)."""
    from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

    shared: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    if arch == "opt":
        return OPTForCausalLM(
            OPTConfig(**shared, ffn_dim=768, word_embed_proj_dim=192, activation_function="relu", dropout=0.0)
        )
    return LlamaForCausalLM(LlamaConfig(**shared, intermediate_size=576, num_key_value_heads=4))


def greedy_sample(model: Any, words: Any, *, tokens: int = 80) -> str:
    """`SAMPLE_PROMPT` continued greedily."""
    import torch

    ids = torch.tensor([words(SAMPLE_PROMPT)["input_ids"]])
    with torch.inference_mode():
        more = model.generate(ids, max_new_tokens=tokens, do_sample=False)
    return words.decode(more[0], skip_special_tokens=True)


def write_model(model: Any, words: Any, folder: Path) -> None:
    """A Hugging Face folder in bf16."""
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=1)
    model.to(torch.bfloat16).save_pretrained(folder)
    words.save_pretrained(folder)
    # transformers 5 writes a class name that 4 does not know; both know this one.
    config = folder / "tokenizer_config.json"
    facts = json.loads(config.read_text(encoding="utf-8"))
    facts.pop("backend", None)
    facts["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def notice(corpus: Corpus) -> str:
    """Whose text it is, with the licence that lies in the library's folder."""
    files = ", ".join(corpus.heldout_files)
    return NOTICE.format(python=corpus.python, files=files, licence=corpus.licence)


@app.command()
def command(
    arch: Annotated[str, typer.Option("--arch", help="opt | llama")],
    out: Annotated[Path, typer.Option("--out", help="folder for heldout.txt and the model")],
    resume: Annotated[bool, typer.Option("--resume", help="continue from the checkpoint")] = False,
    steps: Annotated[int, typer.Option("--steps", min=1, help="of 4096 tokens")] = 1700,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of everything random")] = 0,
    rows: Annotated[int, typer.Option("--rows", min=1, help="windows of 512 per step")] = 8,
    peak: Annotated[float, typer.Option("--lr", help="peak learning rate")] = 2e-3,
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads")] = 1,
    json_: Annotated[bool, typer.Option("--json", help="the manifest on stdout")] = False,
) -> None:
    """Train a small model on the Python standard library and write it in Hugging Face format."""
    if arch not in ARCHITECTURES:
        raise UnknownNameError("architecture", arch, ARCHITECTURES, where="--arch")
    import numpy as np
    import tokenizers
    import torch
    import transformers

    target = out / ARCHITECTURES[arch]
    checkpoint = target / "checkpoint.pt"
    if target.exists() and not resume:
        raise InputError(f"{target.name} is there already; add --resume or remove it", where="--out")
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    corpus = standard_library()
    words = tokenizer(corpus.train)
    train = np.asarray(words(corpus.train)["input_ids"], np.uint16)
    held = np.asarray(words(corpus.heldout)["input_ids"], np.uint16)
    target.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = new_model(arch)
    fit(model, train, steps=steps, rows=rows, seed=seed, peak=peak, checkpoint=checkpoint)
    write_model(model, words, target / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(target / "model", dtype=torch.float32)
    loss = heldout_loss(model, held)
    held_bytes = len(corpus.heldout.encode())
    manifest: dict[str, Any] = {
        "schema": 1,
        "command": f"python -m traces.pretrain --arch {arch} --steps {steps} --rows {rows} --lr {peak} --seed {seed}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "text": corpus.describe(),
        "train_tokens": len(train),
        "tokens_seen": steps * rows * CONTEXT,
        "heldout_tokens": len(held),
        "heldout_loss_nat_per_token": loss,
        "heldout_bits_per_byte": loss * len(held) / held_bytes / log(2.0),
        "baseline_bits_per_byte": baselines(corpus),
        "greedy_sample": greedy_sample(model, words),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "sha256": {p.name: sha256(p.read_bytes()) for p in sorted((target / "model").iterdir())},
    }
    (out / "heldout.txt").write_text(corpus.heldout, encoding="utf-8", newline="\n")
    (out / "NOTICE").write_text(notice(corpus), encoding="utf-8")
    (target / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    if json_:
        console.out_json(manifest)
    else:
        console.out(
            f"{target.name}: {manifest['heldout_bits_per_byte']:.3f} bits per byte held out "
            f"(xz after the training text {manifest['baseline_bits_per_byte']['xz_after_train']:.3f})"
        )


if __name__ == "__main__":
    console.main(app)
