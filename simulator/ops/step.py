"""What one step of the engine works on: decode rows, prefill chunks, or both."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.base.arrays import Array, ceil, maximum


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Rows of one forward pass; arrays broadcast against each other.

    Attributes
    ----------
    decode_rows : Array
        Sequences that generate tokens [-]; 0.0 for a pure prefill.
    decode_context : Array
        Tokens in each of those sequences, the new ones included [-].
    decode_tokens, decode_drawn : Array
        New tokens of each of those sequences, several where drafted ones are verified, and how many of them the next
        token is drawn of [-].
    decode_prompt : Array, optional
        Prompt tokens of each of those sequences [-]; None = not known.
    prefill_rows : Array
        Sequences with a prompt chunk in this step [-]; 0.0 for a pure decode.
    prefill_tokens : Array
        New prompt tokens per such sequence [-].
    prefill_context : Array
        Context of such a sequence after its chunk [-].
    images : Array
        Images that are encoded for the prompts of this step [-].
    group_rows : Array, optional
        Tokens of all ranks of attention data parallelism, where these are one rank's alone [-].
    """

    decode_rows: Array = 0.0
    decode_context: Array = 1.0
    decode_prompt: Array | None = None
    decode_tokens: Array = 1.0
    decode_drawn: Array = 1.0
    prefill_rows: Array = 0.0
    prefill_tokens: Array = 1.0
    prefill_context: Array = 1.0
    images: Array = 0.0
    decodes: bool = True
    prefills: bool = False
    group_rows: Array | None = None

    @property
    def rows(self) -> Array:
        """Tokens every linear layer sees [-]."""
        prompts = self.prefill_rows * self.prefill_tokens if self.prefills else 0.0
        return self._with_decoded(self.decode_tokens, prompts)

    @property
    def routed_rows(self) -> Array:
        """Tokens that the experts of a layer share: those of every rank [-]."""
        return self.rows if self.group_rows is None else self.group_rows

    def of_rank(self, ranks: int) -> Step:
        """What the fullest of `ranks` works on, over which whole sequences are spread evenly."""
        if ranks == 1 or self.group_rows is not None:
            return self
        return replace(
            self,
            decode_rows=_fullest(self.decode_rows / ranks),
            prefill_rows=_fullest(self.prefill_rows / ranks),
            images=_fullest(self.images / ranks),
            group_rows=self.rows,
        )

    @property
    def sampled_rows(self) -> Array:
        """Rows whose next token is drawn: one per sequence, but where drafted tokens are verified [-]."""
        return self._with_decoded(self.decode_drawn, self.prefill_rows)

    @property
    def sequences(self) -> Array:
        """Sequences that the engine handles [-]."""
        return self._with_decoded(1.0, self.prefill_rows)

    def _with_decoded(self, each: Array, prompts: Array) -> Array:
        if not self.decodes:
            return prompts
        decoded = self.decode_rows if isinstance(each, float) and each == 1.0 else self.decode_rows * each
        return decoded + prompts if self.prefills else decoded


def _fullest(mean: Array) -> Array:
    """Whole sequences of the fullest rank; a number next to 0, which stands for nobody, stays."""
    return maximum(ceil(mean - 1e-9), mean)


def decode_step(rows: Array, context: Array, prompt: Array | None = None) -> Step:
    """Every sequence generates one token at `context` tokens, `prompt` of them its prompt."""
    return Step(decode_rows=rows, decode_context=context, decode_prompt=prompt)


def prefill_step(rows: Array, tokens: Array, context: Array | None = None, *, images: Array = 0.0) -> Step:
    """Every sequence brings `tokens` prompt tokens; `context` after them, default the chunk itself."""
    return Step(
        prefill_rows=rows,
        prefill_tokens=tokens,
        prefill_context=tokens if context is None else context,
        images=images,
        decodes=False,
        prefills=True,
    )


def mixed_step(
    rows: Array, context: Array, prompts: Array, tokens: Array, after: Array, decode_prompt: Array | None = None
) -> Step:
    """`rows` sequences of `context` tokens generate one each beside `prompts` chunks of `tokens`, `after` them."""
    return Step(
        decode_rows=rows,
        decode_context=context,
        decode_prompt=decode_prompt,
        prefill_rows=prompts,
        prefill_tokens=tokens,
        prefill_context=after,
        prefills=True,
    )
