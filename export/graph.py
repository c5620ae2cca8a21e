"""The graph of a Vim model, in the operators of docs/file-format.md.

A value is named after what the paper calls it: "patches", "tokens_in", "layers.0.normed", "tokens", "features",
"logits". Nothing is fused here and no device is known.
"""

from __future__ import annotations

from typing import Any

from .config import VimConfig

#: Parameters of the forward scan: the operator's role and the checkpoint's name below "layers.i.mixer." are the same.
_FORWARD_ROLES = (
    "conv1d.weight",
    "conv1d.bias",
    "x_proj.weight",
    "dt_proj.weight",
    "dt_proj.bias",
    "A_log",
    "D",
)
#: What the backward scan has of its own, by mixer.
_BACKWARD_ROLES = {
    "v2": (
        "conv1d_b.weight",
        "conv1d_b.bias",
        "x_proj_b.weight",
        "dt_proj_b.weight",
        "dt_proj_b.bias",
        "A_b_log",
        "D_b",
    ),
    "v1": ("A_b_log",),
    "none": (),
}
_BACKWARD = {"v2": "own", "v1": "shared", "none": "none"}
#: Which token is the class token, by where it was inserted.
_SELECT = {"middle": "middle", "head": "head", "tail": "last", "ends": "ends"}


def build_graph(config: VimConfig) -> dict[str, Any]:
    """The graph as JSON values: one input "pixels", outputs "logits", "tokens" and, where one exists, "features".

    "features" (B, D) is what the head classifies; a model that classifies every token and takes the maximum of each
    logit has none.
    """
    return _GraphBuilder(config).build()


class _GraphBuilder:
    def __init__(self, config: VimConfig) -> None:
        self._config = config
        self._nodes: list[dict[str, Any]] = []

    def build(self) -> dict[str, Any]:
        hidden, residual = self._embed(), None
        for i in range(self._config.depth):
            hidden, residual = self._block(i, hidden, residual)
        inputs = [hidden] if residual is None else [hidden, residual]
        self._add_norm("norm_f", inputs, ["tokens"])
        return {
            "inputs": [{"name": "pixels", "dtype": "float32", "shape": ["batch", 3, "height", "width"]}],
            "nodes": self._nodes,
            "outputs": self._classify(),
        }

    def _add(
        self,
        op: str,
        name: str,
        inputs: list[str],
        outputs: list[str],
        weights: dict[str, str] | None = None,
        **attributes: Any,
    ) -> None:
        node: dict[str, Any] = {"op": op, "name": name, "inputs": inputs, "outputs": outputs}
        if weights:
            node["weights"] = weights
        if attributes:
            node["attributes"] = attributes
        self._nodes.append(node)

    def _embed(self) -> str:
        """Patches, class token and positions; returns the value that enters the first block."""
        config = self._config
        weights = {"weight": "patch_embed.proj.weight", "bias": "patch_embed.proj.bias"}
        self._add("patch_embed", "patch_embed", ["pixels"], ["patches"], weights, stride=config.stride)
        tokens = "patches"
        if config.class_token != "none":
            ends = {"head": "cls_token_head", "tail": "cls_token_tail"}
            weights = ends if config.class_token == "ends" else {"token": "cls_token"}
            self._add(
                "insert_tokens", "cls_token", [tokens], ["tokens_with_class"], weights, position=config.class_token
            )
            tokens = "tokens_with_class"
        if config.position_embedding:
            attributes: dict[str, Any] = {"grid": list(config.grid), "class_token": config.class_token}
            if config.first_entry:
                attributes["first_entry"] = True
            self._add("add_position", "pos_embed", [tokens], ["tokens_in"], {"position": "pos_embed"}, **attributes)
            tokens = "tokens_in"
        return tokens

    def _block(self, i: int, hidden: str, residual: str | None) -> tuple[str, str]:
        """Add, norm and mixer of block i; returns its hidden state and residual stream."""
        block = f"layers.{i}"
        if self._config.rope:
            hidden = self._rope(f"{block}.rope_hidden", hidden, f"{block}.hidden_rotated")
            if residual is not None:
                residual = self._rope(f"{block}.rope_residual", residual, f"{block}.residual_rotated")
        inputs = [hidden] if residual is None else [hidden, residual]
        self._add_norm(f"{block}.norm", inputs, [f"{block}.normed", f"{block}.residual"])
        self._mixer(block)
        return f"{block}.hidden", f"{block}.residual"

    def _rope(self, name: str, value: str, rotated: str) -> str:
        weights = {"cos": "rope.freqs_cos", "sin": "rope.freqs_sin"}
        self._add("rope", name, [value], [rotated], weights, grid=list(self._config.grid))
        return rotated

    def _add_norm(self, name: str, inputs: list[str], outputs: list[str]) -> None:
        config = self._config
        weights = {"weight": f"{name}.weight"}
        if config.norm == "layer":
            weights["bias"] = f"{name}.bias"
        self._add("add_norm", name, inputs, outputs, weights, norm=config.norm, eps=config.norm_eps)

    def _mixer(self, block: str) -> None:
        config, mixer = self._config, f"{block}.mixer"
        x, z = f"{block}.x", f"{block}.z"
        self._linear(f"{block}.in_proj", f"{block}.normed", f"{block}.xz", f"{mixer}.in_proj.weight")
        self._add("split", f"{block}.split", [f"{block}.xz"], [x, z], sizes=[config.d_inner, config.d_inner])

        roles = _FORWARD_ROLES + _BACKWARD_ROLES[config.mixer]
        scanned = [f"{block}.y_forward"] + ([f"{block}.y_backward"] if config.mixer != "none" else [])
        weights = {role: f"{mixer}.{role}" for role in roles}
        self._add("bidirectional_scan", f"{block}.scan", [x], scanned, weights, backward=_BACKWARD[config.mixer])
        merge = config.merge if config.mixer == "v2" else "sum"
        self._add("gated_merge", f"{block}.merge", [*scanned, z], [f"{block}.y"], merge=merge)

        out = f"{block}.unscaled" if config.layer_scale else f"{block}.hidden"
        self._linear(f"{block}.out_proj", f"{block}.y", out, f"{mixer}.out_proj.weight")
        if config.layer_scale:
            self._add("scale", f"{block}.layer_scale", [out], [f"{block}.hidden"], {"gamma": f"{mixer}.gamma"})

    def _linear(self, name: str, source: str, result: str, weight: str, bias: str | None = None) -> None:
        weights = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        self._add("linear", name, [source], [result], weights)

    def _classify(self) -> dict[str, str]:
        """Selection or pooling and the head; returns the graph's outputs."""
        pool = self._config.pool
        if pool == "max":
            self._linear("head", "tokens", "token_logits", "head.weight", "head.bias")
            self._add("pool", "pool", ["token_logits"], ["logits"], mode="max")
            return {"logits": "logits", "tokens": "tokens"}
        if pool == "mean":
            self._add("pool", "pool", ["tokens"], ["features"], mode="mean")
        else:
            position = "last" if pool == "last" else _SELECT[self._config.class_token]
            self._add("select_tokens", "select", ["tokens"], ["features"], position=position)
        self._linear("head", "features", "logits", "head.weight", "head.bias")
        return {"logits": "logits", "features": "features", "tokens": "tokens"}
