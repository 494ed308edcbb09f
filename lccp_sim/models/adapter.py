"""Any causal LM of `transformers` as a LanguageModel: its own forward, its own attention, seen and gated on the way.

An attention function is registered beside the model's own one; it looks at q and k, and delegates. So nothing of the
model is rewritten. Where the attention of some layer does not pass by (Mamba, hybrids), the model counts as one without
heads (`num_heads` 0): monitors leave head scores out, and `tapping` refuses it, so nothing is mismeasured.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lccp_sim.config import ConfigError
from lccp_sim.models.language_model import Attended, LanguageModel, Tap

TRIED = 8  # tokens of the forward that tells what a model is


class Hidden(NamedTuple):
    """Hidden states after the final norm."""

    hidden_BTD: Tensor


class _Switch:
    """What the layers of one model share: tap, gate, the attention that they had, the query heads seen, by layer."""

    def __init__(self, previous: str):
        self.previous = previous
        self.tap: Tap | None = None
        self.gate_LN: Tensor | None = None
        self.heads: dict[int, int] = {}


class Adapter(LanguageModel):
    """`model` is any `transformers` model with a language-model head. Raises ConfigError where it is of no use.

    Then the model is as before. `num_heads` is 0 where not every layer's attention can be scored.
    """

    def __init__(self, model: Any):
        super().__init__()
        if not hasattr(model, "set_attn_implementation"):
            raise ConfigError(
                f"{type(model).__name__} is neither a LanguageModel nor a model of transformers; make it a subclass of "
                "lccp_sim.models.language_model.LanguageModel"
            )
        self.model = model
        config = model.config.get_text_config(decoder=True)
        self.switch = _Switch(config._attn_implementation)
        modes = [(module, module.training) for module in model.modules()]
        try:
            self._adapt(config)
        except BaseException as error:
            self.release()
            said = isinstance(error, ConfigError | MemoryError | torch.OutOfMemoryError)
            if said or not isinstance(error, Exception):
                raise
            raise ConfigError(
                f"model_type={model.config.model_type}: a forward of {TRIED} tokens does not give what a causal LM of "
                "transformers gives; this architecture is not supported"
            ) from error
        finally:
            for module, training in modes:
                module.training = training

    def _adapt(self, config: Any) -> None:
        model = self.model
        self.num_layers, self.num_heads = config.num_hidden_layers, 0
        self.vocab_size = config.vocab_size
        # Gemma's name, RecurrentGemma's name.
        self.softcap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
        # Granite divides, Cohere multiplies.
        self.logit_scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        model.set_attn_implementation(_register(self.switch.previous))
        for module in model.modules():
            module.lccp_switch = self.switch
        # Learned positions end; rotary ones go on, however badly.
        ends = getattr(config, "rope_parameters", None) is None and hasattr(config, "max_position_embeddings")
        self.most_tokens = config.max_position_embeddings if ends else None
        model.eval()
        self._check()
        seen = [self.switch.heads.get(layer, 0) for layer in range(self.num_layers)]
        self.num_heads = seen[0] if len(set(seen)) == 1 else 0

    @property
    def body(self) -> Any:
        """The part of the model that gives hidden states: without a base model, the child that holds the embeddings."""
        if self.model.base_model is not self.model:
            return self.model.base_model
        embedding = self.model.get_input_embeddings()  # Llama 4's text model names a prefix that it does not have
        return next(child for child in self.model.children() if any(each is embedding for each in child.modules()))

    def forward(self, tokens_BT: Tensor) -> Hidden:
        """Hidden states of rows that hold one text each, padded at the end if at all."""
        if self.most_tokens is not None and tokens_BT.shape[1] > self.most_tokens:
            raise ConfigError(
                f"{type(self.model).__name__} has {self.most_tokens} learned positions, and a monitor sends "
                f"{tokens_BT.shape[1]} tokens; shorten the monitors' lengths"
            )
        return Hidden(self.body(input_ids=tokens_BT, use_cache=False).last_hidden_state)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """[R, V] fp32."""
        head = self.model.get_output_embeddings()
        with torch.autocast(hidden_RD.device.type, enabled=False):  # as in Transformer
            logits_RV = head(hidden_RD.to(head.weight.dtype)).float() * self.logit_scale
        return logits_RV if self.softcap is None else self.softcap * (logits_RV / self.softcap).tanh()

    def set_tap(self, tap: Tap | None) -> None:
        """None; sets the tap of every layer whose attention goes through the interface of `transformers`."""
        self.switch.tap = tap

    def set_gate(self, gate_LN: Tensor | None) -> None:
        """None; sets the gate of these layers."""
        self.switch.gate_LN = gate_LN

    def release(self) -> None:
        """None; the model attends as before it was adapted."""
        self.model.set_attn_implementation(self.switch.previous)
        for module in self.model.modules():
            vars(module).pop("lccp_switch", None)

    @torch.no_grad()
    def _check(self) -> None:
        """None, or ConfigError where the model has no head of the known form, or looks ahead."""
        name = type(self.model).__name__
        if not isinstance(self.model.get_output_embeddings(), nn.Module):
            raise ConfigError(f"{name} has no language-model head; name a causal LM")
        tokens_BT = torch.arange(TRIED, device=self.device)[None] % self.vocab_size
        other_BT = tokens_BT.clone()
        other_BT[0, -1] = 0
        hidden_TD, other_TD = self(tokens_BT).hidden_BTD[0], self(other_BT).hidden_BTD[0]
        wanted = self.model(input_ids=tokens_BT, use_cache=False).logits[0].float()
        if not bool(wanted.isfinite().all()):
            return  # the monitors say where
        slack = torch.finfo(hidden_TD.dtype).eps ** 0.5  # experts of another size round otherwise
        if (hidden_TD - other_TD)[:-1].abs().max() > slack * hidden_TD.abs().max():
            raise ConfigError(f"{name}: a later token changes what comes before it, so it is no causal LM; name one")
        if (self.logits(hidden_TD) - wanted).abs().max() > slack * wanted.abs().max():
            raise ConfigError(
                f"{name}: its logits are not its output embedding times the last hidden state, so its NLL cannot be "
                "read from hidden states; this architecture is not supported"
            )


@contextmanager
def adapted(model: nn.Module) -> Iterator[LanguageModel]:
    """A LanguageModel as it is, or a causal LM of `transformers` adapted while it is open and as before afterwards."""
    if isinstance(model, LanguageModel):
        yield model
        return
    adapter = Adapter(model)
    try:
        yield adapter
    finally:
        adapter.release()


def _register(previous: str) -> str:
    """The name of an attention that looks on and then does what `previous` does, masks included."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if previous.startswith("lccp_"):
        return previous
    name = f"lccp_{previous}"
    ALL_ATTENTION_FUNCTIONS.register(name, _attention)
    if previous in ALL_MASK_ATTENTION_FUNCTIONS:
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[previous])
    return name


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The model's own attention, [B, T, N, H] and weights or None; q, k, v come as [B, heads, tokens, H]."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    switch: _Switch = module.lccp_switch
    biased = kwargs.get("position_bias") is not None  # such heads cannot be scored
    layer: int | None = None if biased else getattr(module, "layer_idx", None)
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(switch.previous, eager)
    if layer is not None:
        switch.heads[layer] = query.shape[1]
    if switch.tap is not None and layer is not None:
        scale = kwargs.get("scaling")
        attended = Attended(
            query.transpose(1, 2),
            key.transpose(1, 2),
            query.shape[-1] ** -0.5 if scale is None else float(scale),
            kwargs.get("sliding_window"),
            kwargs.get("s_aux"),
            kwargs.get("softcap"),
            attention_mask,
        )
        switch.tap(layer, attended)
    y_BTNH, weights = attend(module, query, key, value, attention_mask, **kwargs)
    if switch.gate_LN is not None and layer is not None:
        y_BTNH = y_BTNH * switch.gate_LN[layer, :, None].to(y_BTNH.dtype)
    return y_BTNH, weights
