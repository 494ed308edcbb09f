"""Any causal LM of `transformers` as a LanguageModel: its own forward and attention, tapped and gated.

During a forward, the attention function that a layer looks up is wrapped, so that the wrapper sees q and k first. The
model is not rewritten and its config is not changed: some models compute something else under another attention name.
If the attention of some layer does not pass through the wrapper (Mamba, hybrids), or passes twice, the model counts as
a model without heads (`num_heads` 0): monitors leave head scores out, and `tapping` refuses it, so nothing is
mismeasured. Hidden states are the inputs that the model's own forward gives to its head, which computes no logits
meanwhile.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lccp_sim.errors import ConfigError
from lccp_sim.models.language_model import Attended, LanguageModel, Tap

KNOWN_ARGUMENTS = {
    "cache_position",
    "position_bias",
    "position_ids",
    "s_aux",
}  # tensor arguments of attention functions
TRIED = 8  # tokens of the trial forward


class Hidden(NamedTuple):
    """The input of the language-model head."""

    hidden_BTD: Tensor


class _Switch:
    """State that the layers of one model share: tap, gate, and the number of query heads in the last forward, by layer.

    The number is 0 for a layer whose heads cannot be scored.
    """

    def __init__(self) -> None:
        self.tap: Tap | None = None
        self.gate_LN: Tensor | None = None
        self.heads: dict[int, int] = {}


class Adapter(LanguageModel):
    """A wrapper of `model`, any `transformers` model with a language-model head, which stays unchanged.

    Raises ConfigError if the model cannot be used. `num_heads` is 0 unless every layer's attention can be scored.
    """

    def __init__(self, model: Any):
        super().__init__()
        if not hasattr(model, "get_output_embeddings") or not hasattr(model, "config"):
            raise ConfigError(
                "the model is neither a transformers model nor a LanguageModel; make it a subclass of "
                "lccp_sim.models.language_model.LanguageModel"
            )
        self.model = model
        self.switch = _Switch()
        modes = [(module, module.training) for module in model.modules()]
        try:
            self._adapt()
        except (ConfigError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ConfigError(
                f"{self.name}: a forward of {TRIED} tokens does not return a causal LM's output; this "
                "architecture is not supported"
            ) from error
        finally:
            for module, training in modes:
                module.training = training

    @property
    def name(self) -> str:
        """The model's name for messages."""
        return f"model_type={self.model.config.model_type}"

    def _adapt(self) -> None:
        config = self.model.config.get_text_config(decoder=True)
        self.num_layers: int = (
            getattr(config, "decoder_layers", None) or getattr(config, "num_hidden_layers", None) or 0
        )
        self.vocab_size = config.vocab_size
        caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM
        self.softcap: float | None = next((cap for name in caps if (cap := getattr(config, name, None))), None)
        # Granite divides, Cohere multiplies.
        self.logit_scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        self.most_tokens: int | None = None
        names = ("max_position_embeddings", "max_seq_len")  # often nominal, sometimes a hard limit; the second is MPT's
        self.named_tokens: int | None = next((n for name in names if (n := getattr(config, name, None))), None)
        self.model.eval()
        self._check()

    def forward(self, tokens_BT: Tensor) -> Hidden:
        """Hidden states of rows that hold one text each, padded at the end if at all."""
        length = tokens_BT.shape[1]
        if self.most_tokens is not None and length > self.most_tokens:
            raise self._too_long(self.most_tokens, length)
        self.switch.heads.clear()
        head = self.model.get_output_embeddings()
        try:
            with _watching(self.switch), _listening(head) as given, torch.compiler.set_stance("force_eager"):
                self._run(tokens_BT)
        except (IndexError, RuntimeError, ValueError) as error:  # MPT, Reformer: the limit is not a table
            if isinstance(error, torch.OutOfMemoryError) or self.named_tokens is None or length <= self.named_tokens:
                raise
            raise self._too_long(self.named_tokens, length) from error
        [hidden_BTD] = given
        return Hidden(hidden_BTD.reshape(*tokens_BT.shape, hidden_BTD.shape[-1]))

    def _run(self, tokens_BT: Tensor) -> Any:
        """The model's output."""
        with _plain(self.model):
            return self.model(input_ids=tokens_BT, use_cache=False)

    def _too_long(self, most: int, length: int) -> ConfigError:
        return ConfigError(
            f"{self.name}: has {most} positions, and a monitor sends {length} tokens; shorten the monitors' lengths"
        )

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """[R, V] fp32."""
        head = self.model.get_output_embeddings()
        with torch.autocast(hidden_RD.device.type, enabled=False):  # as in Transformer
            logits_RV = head(hidden_RD.to(head.weight.dtype)).float() * self.logit_scale
        return logits_RV if self.softcap is None else self.softcap * (logits_RV / self.softcap).tanh()

    def set_tap(self, tap: Tap | None) -> None:
        """Set the tap of every layer whose attention goes through the interface of `transformers`."""
        self.switch.tap = tap

    def set_gate(self, gate_LN: Tensor | None) -> None:
        """Set the gate of these layers."""
        self.switch.gate_LN = gate_LN

    @torch.no_grad()
    def _check(self) -> None:
        """Count heads and positions.

        Raises ConfigError if the model has no head of the known form, or attends to later tokens.
        """
        if not isinstance(self.model.get_output_embeddings(), nn.Module):
            raise ConfigError(f"{self.name}: has no language-model head; name a causal LM")
        # Not consecutive, unlike positions; no special tokens, which are at the ends of the vocabulary.
        tokens_BT = (self.vocab_size // 2 + 3 * torch.arange(TRIED, device=self.device)[None]) % self.vocab_size
        other_BT = tokens_BT.clone()
        other_BT[0, -1] = (other_BT[0, -1] + 1) % self.vocab_size
        with _Positions() as positions:
            hidden_TD = self(tokens_BT).hidden_BTD[0]
        self.most_tokens = min(positions.rows, default=None)
        seen = {self.switch.heads.get(layer, 0) for layer in range(self.num_layers)}
        self.num_heads = seen.pop() if len(seen) == 1 and len(self.switch.heads) == self.num_layers else 0
        other_TD = self(other_BT).hidden_BTD[0]
        wanted = self._run(tokens_BT).logits[0].float()
        if not bool(wanted.isfinite().all()):
            return  # the monitors report the limit
        slack = torch.finfo(hidden_TD.dtype).eps ** 0.5  # expert batches of another size round differently
        if (hidden_TD - other_TD)[:-1].abs().max() > slack * hidden_TD.abs().max():
            raise ConfigError(
                f"{self.name}: a later token changes earlier outputs, so it is not a causal LM; name a causal LM"
            )
        logits = self.logits(hidden_TD)
        if logits.shape != wanted.shape or (logits - wanted).abs().max() > slack * wanted.abs().max():
            raise ConfigError(
                f"{self.name}: its logits are not its output embedding times the last hidden state, so its NLL cannot "
                "be read from hidden states; this architecture is not supported"
            )


class _Positions(TorchFunctionMode):
    """Within the context, collect in `rows` the sizes of tables that are indexed with positions 0, 1, 2, ..."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func` and return its result."""
        kwargs = kwargs or {}
        if func is nn.functional.embedding:
            index, table = _named(("input", "weight"), args, kwargs)
            self._note(table.shape[0], index)
        elif func is torch.gather:  # GPT-J
            table, dim, index = _named(("input", "dim", "index"), args, kwargs)
            self._note(table.shape[dim], index.transpose(dim, -1))
        elif func is Tensor.__getitem__:  # CTRL
            index = args[1][0] if isinstance(args[1], tuple) and args[1] else args[1]
            if isinstance(index, Tensor) and index.dtype == torch.int64 and args[0].dim() == 2:
                self._note(args[0].shape[0], index)
        return func(*args, **kwargs)

    def _note(self, rows: int, index: Tensor) -> None:
        if index.dim() and index.shape[-1] == TRIED and rows > TRIED and bool((index.diff() == 1).all()):
            self.rows.append(rows - int(index.min()))


def _named(names: tuple[str, ...], args: Any, kwargs: Any) -> list[Any]:
    """The arguments with these names."""
    given = dict(zip(names, args, strict=False)) | kwargs
    return [given[name] for name in names]


@contextmanager
def _listening(head: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs of `head` within the context. It returns one column of its input instead of logits, to save work."""
    given: list[Tensor] = []
    own = vars(head).get("forward")

    def forward(hidden: Tensor) -> Tensor:
        given.append(hidden)
        return hidden[..., :1]

    vars(head)["forward"] = forward
    try:
        yield given
    finally:
        vars(head).pop("forward")
        if own is not None:
            vars(head)["forward"] = own


@contextmanager
def _plain(model: nn.Module) -> Iterator[None]:
    """Within the context, models compute the forward of their class, not a trainer's replacement for it.

    accelerate wraps it in an autocast; TRL and Liger install a fused head, which in a copy of the model would compute
    with the weights of the original. So measurements in training and from disk agree.
    """
    of_models = [each for each in model.modules() if "forward" in vars(each) and hasattr(each, "get_output_embeddings")]
    before = [vars(each).pop("forward") for each in of_models]
    try:
        yield
    finally:
        for each, own in zip(of_models, before, strict=True):
            vars(each)["forward"] = own


def adapted(model: nn.Module) -> LanguageModel:
    """`model` itself if it is a LanguageModel, else a causal LM of `transformers`, wrapped and unchanged."""
    return model if isinstance(model, LanguageModel) else Adapter(model)


@contextmanager
def _watching(switch: _Switch) -> Iterator[None]:
    """Within the context, every attention function that a layer of `transformers` looks up goes through `switch`."""
    from transformers.modeling_utils import AttentionInterface

    own = AttentionInterface.get_interface

    def get_interface(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        return functools.partial(_attention, switch, own(*args, **kwargs))

    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign]
    try:
        yield
    finally:
        AttentionInterface.get_interface = own  # type: ignore[method-assign]


def _attention(
    switch: _Switch,
    attend: Callable[..., tuple[Tensor, Tensor | None]],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The result of `attend`: [B, T, N, H], and weights or None. q, k, v are [B, heads, tokens, H]."""
    layer: int | None = getattr(module, "layer_idx", None)
    if layer is not None:
        # Called twice (differential, loops), over keys that are not tokens (compressed), or with unknown arguments:
        # then the attention rows computed here would not show what a head reads.
        unknown = [name for name, given in kwargs.items() if isinstance(given, Tensor) and name not in KNOWN_ARGUMENTS]
        plain = layer not in switch.heads and key.shape[2] == query.shape[2] and not unknown
        switch.heads[layer] = query.shape[1] if plain else 0
    if switch.tap is not None and layer is not None:
        scale = kwargs.get("scaling")
        attended = Attended(
            query.transpose(1, 2),
            key.transpose(1, 2),
            query.shape[-1] ** -0.5 if scale is None else float(scale),
            kwargs.get("sliding_window"),
            kwargs.get("s_aux"),
            kwargs.get("softcap"),
            _biased(attention_mask, kwargs.get("position_bias")),
        )
        switch.tap(layer, attended)
    y_BTNH, weights = attend(module, query, key, value, attention_mask, **kwargs)
    if switch.gate_LN is not None and layer is not None:
        y_BTNH = y_BTNH * switch.gate_LN[layer, :, None].to(y_BTNH.dtype)
    return y_BTNH, weights


def _biased(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """One mask, bool or additive, for a mask and a bias by position (Inkling)."""
    if bias is None or mask is None:
        return mask if bias is None else bias
    return bias.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else bias + mask
