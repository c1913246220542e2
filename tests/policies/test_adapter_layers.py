"""Which layers an adapter acts on as its merged weight does, in a model with one layer of each kind."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional

from burnish.policies.adapter_layers import LayerUse
from burnish.policies.adapters import share_weights

WIDTH = 8


class Spelled(nn.Linear):
    """Multiplies by its weight in other words."""

    def forward(self, rows):
        return rows @ self.weight.T + self.bias


class Scaled(nn.Linear):
    def forward(self, rows):
        return 2 * super().forward(rows)


class Router(nn.Linear):
    """Returns more than a tensor."""

    def forward(self, rows):
        scores = super().forward(rows)
        return scores, scores.argmax(-1)


class Grouped(nn.Linear):
    """Multiplies parts of its input by parts of its weight."""

    def forward(self, rows):
        parts = rows.unflatten(-1, (2, -1))
        return torch.einsum("...gi,goi->...go", parts, self.weight.unflatten(0, (2, -1))).flatten(-2)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, WIDTH, WIDTH))
        self.down = nn.Parameter(torch.randn(3, WIDTH, WIDTH))

    def forward(self, rows):
        return rows @ self.up[1]


class Kinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, WIDTH)
        self.plain, self.spelled, self.scaled = nn.Linear(WIDTH, WIDTH), Spelled(WIDTH, WIDTH), Scaled(WIDTH, WIDTH)
        self.router, self.grouped = Router(WIDTH, WIDTH), Grouped(WIDTH // 2, WIDTH)
        self.by_weight, self.also_read = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.idle = nn.Linear(WIDTH, WIDTH)
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.other.weight = self.one.weight
        self.several = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(WIDTH, WIDTH)}) for _ in range(3))
        self.experts = Experts()
        self.device = torch.device("cpu")

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, use_cache=False):
        rows = self.embed(input_ids)
        rows = self.grouped(self.scaled(self.spelled(self.plain(rows))))
        rows = rows + self.router(rows)[0] + functional.linear(rows, self.by_weight.weight)
        rows = self.also_read(rows) * self.also_read.weight.norm()
        rows = self.other(self.one(rows)).to(self.idle.weight.dtype)
        return self.experts(self.several[1]["up"](rows))


@pytest.fixture(scope="module")
def find_fault():
    """Return the fault of an adapter of a module or parameter, by its name."""
    torch.manual_seed(0)
    model = Kinds()
    use = LayerUse(model)

    def fault(name: str) -> str:
        parameters = [name] if name.startswith("experts") else None
        config = LoraConfig(r=2, target_modules=[] if parameters else [name], target_parameters=parameters)
        adapted = get_peft_model(share_weights(model), config)
        wrapper = adapted.base_model.model.get_submodule("experts" if parameters else name)
        before = {key: one.clone() for key, one in adapted.state_dict().items()}
        result = use.find_fault(name if parameters else f"{name}.weight", wrapper)
        assert all(torch.equal(one, before[key]) for key, one in adapted.state_dict().items()), "nothing has changed"
        return result

    return fault


@pytest.mark.parametrize("name", ["plain", "spelled", "several.0.up", "several.1.up", "embed", "experts.up"])
def test_a_layer_that_multiplies_by_its_weight_and_is_called_has_no_fault(find_fault, name):
    assert find_fault(name) == ""


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("scaled", "does more than multiply"),
        ("router", "does more than multiply"),
        ("grouped", "does more than multiply"),
        ("by_weight", "reads without calling the layer"),
        ("also_read", "reads without calling the layer"),
        ("idle", "is not called"),
        ("experts.down", "is not called"),
        ("one", "shares its weight with 'other'"),
        ("other", "shares its weight with 'one'"),
    ],
)
def test_a_layer_that_its_adapter_would_not_change_as_merged_has_a_fault(find_fault, name, fault):
    assert fault in find_fault(name)


def test_a_copy_that_shares_weights_has_the_same_storages_and_its_own_parameters():
    model = Kinds()
    copied = share_weights(model)
    pairs = list(zip(model.parameters(), copied.parameters(), strict=True))
    assert all(one.data_ptr() == other.data_ptr() and one is not other for one, other in pairs)
    assert copied.one.weight is copied.other.weight
    assert not any(other.requires_grad for _, other in pairs)
