"""References for the temporal encoder: transformers' LongformerModel, and dense attention."""

from typing import Any

import torch
from torch import Tensor
from transformers import LongformerConfig, LongformerModel
from vtnpipe.temporal.config import TemporalConfig


def longformer_model(config: TemporalConfig) -> LongformerModel:
    """The LongformerModel of a configuration, without word embeddings: its tokens are vectors."""
    model = LongformerModel(
        LongformerConfig(
            vocab_size=config.max_positions,
            pad_token_id=config.max_positions - 1,
            bos_token_id=None,
            eos_token_id=None,
            sep_token_id=None,
            type_vocab_size=2,
            hidden_size=config.feature_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            attention_window=[config.attention_window] * config.num_layers,
            intermediate_size=config.intermediate_dim,
            max_position_embeddings=config.max_positions,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.attention_dropout,
        ),
        add_pooling_layer=False,
    )
    del model.embeddings.word_embeddings
    return model


def run_longformer_model(
    model: LongformerModel, cls: Tensor, features: Tensor, positions: Tensor, mask: Tensor
) -> Tensor:
    """Final states of all tokens, [B, 1 + T, D]; the model is called as in the authors' code."""
    config, pad = model.config, torch.nn.functional.pad
    tokens = torch.cat([cls.expand(len(features), -1, -1), features], 1)
    num_tokens = tokens.shape[1]
    missing = -num_tokens % config.attention_window[0]
    cls_position, padding = config.max_position_embeddings - 2, config.max_position_embeddings - 1
    mask = pad(pad(mask, (1, 0), value=True), (0, missing), value=False)
    is_cls = torch.zeros_like(mask, dtype=torch.long)
    is_cls[:, 0] = 1
    positions = pad(pad(positions % cls_position, (1, 0), value=cls_position), (0, missing))
    output: Any = model(
        inputs_embeds=pad(tokens, (0, 0, 0, missing)),
        position_ids=positions.masked_fill(~mask, padding),
        token_type_ids=is_cls,
        attention_mask=mask.long(),
        global_attention_mask=is_cls,
    )
    states: Tensor = output.last_hidden_state[:, :num_tokens]
    return states


def dense_window_attention(
    query: Tensor, key: Tensor, value: Tensor, is_key: Tensor, cls_key: Tensor, cls_value: Tensor
) -> Tensor:
    """`window_attention` with one mask over all keys, of which that of [CLS] is the first."""
    Q, num_around = query.shape[1], key.shape[1] - query.shape[1]
    ahead = torch.arange(key.shape[1]) - torch.arange(Q)[:, None]
    may_look = (ahead >= 0) & (ahead <= num_around) & is_key[:, None]
    may_look = torch.nn.functional.pad(may_look, (1, 0), value=True)
    key, value = torch.cat([cls_key[:, None], key], 1), torch.cat([cls_value[:, None], value], 1)
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~may_look[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, value)


def dense_cls_attention(
    model: LongformerModel, cls: Tensor, features: Tensor, positions: Tensor, mask: Tensor
) -> Tensor:
    """Attention of [CLS] in each layer, [B, L, H, 1 + T], from the inputs of transformers' layers:
    the softmax over the products of its global query with the global keys of all tokens.
    """
    inputs: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        for layer in model.encoder.layer
    ]
    run_longformer_model(model, cls, features, positions, mask)
    for hook in hooks:
        hook.remove()
    found = []
    mask = torch.nn.functional.pad(mask, (1, 0), value=True)
    for layer, tokens in zip(model.encoder.layer, inputs, strict=True):
        attention = layer.attention.self
        tokens = tokens[:, : mask.shape[1]]
        query, key = attention.query_global(tokens[:, 0]), attention.key_global(tokens)
        query, key = (one.unflatten(-1, (attention.num_heads, -1)) for one in (query, key))
        scores = torch.einsum("bhd,bnhd->bhn", query, key) / query.shape[-1] ** 0.5
        found.append(scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1))
    return torch.stack(found, dim=1)
