"""A policy that real processes have in parts: the sum of their gradients, what each holds, and parts on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from burnish.backends.local import build_language_model
from burnish.backends.ray.group import listening_at
from burnish.backends.ray.sharding import decoder_layers
from burnish.backends.ray.shares import deal
from burnish.errors import InputError
from burnish.policies.causal_lm import CausalPolicy
from burnish.recipe.algorithm import resolve_preset
from burnish.recipe.schema import Recipe, load_recipe
from burnish.run.checkpoint import read_optimizer, write_optimizer
from burnish.run.shards import read_shards
from burnish.training.kl_reference import KLTerm
from burnish.training.optimizer import build_optimizer, clip_gradient, set_learning_rate
from burnish.training.policy_loss import PolicyLoss
from burnish.training.step import add_gradients
from burnish.types import Completion, Microbatch, Prompt

LIMIT, RATE, STEPS = 0.5, 5e-3, 3
MEMBER = """
import json, socket, sys
from pathlib import Path

import torch

from burnish.backends.ray.group import LearnerGroup, Meeting
from burnish.backends.ray.sharding import Shard
from burnish.backends.ray.shares import deal
from tests.backends.ray.test_sharding import LIMIT, RATE, STEPS, load, recipe, some_batches

rank, size, port, descriptor, folder = *map(int, sys.argv[1:5]), Path(sys.argv[5])
torch.set_num_threads(1)
settings = recipe(**json.loads(sys.argv[6]))
listening = None if rank else socket.socket(fileno=descriptor)
group = LearnerGroup(rank, Meeting("127.0.0.1", port, size, 60.0), "127.0.0.1", cuda=False, listening=listening)
policy = load(settings)
shard = Shard(policy, settings, size)
if (folder / "before").exists():
    shard.load(str(folder / "before"))
batches = [batch for _, batch in deal(some_batches(), size)[rank]]
norms = []
for _ in range(STEPS):
    losses = shard.add_gradients(batches, 0.0)
    norms.append(shard.clip_gradient(LIMIT))
    shard.update(RATE)
shard.save(str(folder / "parts"))
held = shard.held()
whole = {name: one for part in shard.gathered() for name, one in part.items()}
if not rank:
    torch.save(whole, folder / "whole.pt")
(folder / f"{rank}.json").write_text(json.dumps({"norms": norms, "held": held, "microbatches": len(batches)}))
group.leave()
"""


def recipe(model: str, **changes: object) -> Recipe:
    settings = {
        "name": "split", "steps": STEPS, "policy": {"model": model, **changes}, "task": {"use": "news"},
        "sampling": {"prompts_per_step": 2, "samples_per_prompt": 2, "max_new_tokens": 8},
        "reward": [{"use": "repetition"}],
    }  # fmt: skip
    return load_recipe(settings)


def load(settings: Recipe) -> CausalPolicy:
    return build_language_model(settings.policy, 0, offline=True)


def some_batches() -> list[Microbatch]:
    """Return three microbatches, the first of two completions, with advantages of both signs."""
    generator, batches = torch.Generator().manual_seed(3), []
    for number, lengths in enumerate([(4, 7), (9,), (2,)]):
        texts = [
            Completion(
                Prompt("", ""), (5 + number, 6), tuple(range(40 + number, 40 + number + length)), "", (), "length"
            )
            for length in lengths
        ]
        count = sum(lengths)
        advantages = torch.randn(count, generator=generator, dtype=torch.float64)
        batches.append(Microbatch(texts, advantages, torch.full((count,), 0.1).double(), torch.zeros(count), None))
    return batches


def train_here(settings: Recipe, before: Path | None = None) -> tuple[CausalPolicy, list[float], object]:
    """Train as the members do, in this process. Return the policy, the gradient's norms and the optimizer."""
    policy = load(settings)
    optimizer = build_optimizer(policy, settings.optimizer)
    if before is not None:
        read_shards(before, optimizer, policy.trainable(), alone=True)
    loss = PolicyLoss(resolve_preset(settings.algorithm), settings.algorithm, KLTerm(settings.algorithm.kl, policy))
    norms = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        list(add_gradients(policy, loss, settings.sampling.params, some_batches()))
        norms.append(clip_gradient(policy.trainable().values(), LIMIT))
        set_learning_rate(optimizer, RATE)
        optimizer.step()
    return policy, norms, optimizer


def train_split(folder: Path, size: int, **options: object) -> list[dict]:
    """Train in as many processes, which leave ``parts`` and ``whole.pt`` in the folder. Return what each reports."""
    (folder / "parts").mkdir(parents=True)
    with listening_at("127.0.0.1") as listening:
        place = [listening.getsockname()[1], listening.fileno(), folder, json.dumps(options)]
        members = [
            subprocess.Popen(
                [sys.executable, "-c", MEMBER, *map(str, (rank, size, *place))], pass_fds=[listening.fileno()]
            )
            for rank in range(size)
        ]
        assert [one.wait(timeout=240) for one in members] == [0] * size
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def split(tiny, tmp_path_factory) -> tuple[Path, list[dict]]:
    """Return the folder of a training of a tiny Llama by three processes, and their reports."""
    folder = tmp_path_factory.mktemp("split")
    return folder, train_split(folder, 3, model=str(tiny("llama")))


@pytest.mark.slow
class TestThreeProcesses:
    def test_the_weights_and_norms_of_one_process(self, tiny, split):
        folder, members = split
        policy, norms, _ = train_here(recipe(str(tiny("llama"))))
        for member in members:
            assert member["norms"] == pytest.approx(norms, rel=1e-5)
        whole = torch.load(folder / "whole.pt", weights_only=True)
        for name, parameter in policy.trainable().items():
            torch.testing.assert_close(whole[name], parameter.detach(), rtol=0, atol=1e-5)

    def test_each_holds_a_third_of_weights_and_moments(self, tiny, split):
        total = sum(one.numel() for one in load(recipe(str(tiny("llama")))).model.parameters())
        held = [member["held"] for member in split[1]]
        assert sum(weights for weights, _ in held) == total
        for weights, moments in held:
            assert moments == 2 * weights and weights == pytest.approx(total / 3, rel=0.05)

    def test_each_runs_as_many_microbatches(self, split):
        assert [member["microbatches"] for member in split[1]] == [1, 1, 1]

    def test_one_process_reads_the_parts_and_goes_on_as_two_do(self, tiny, split, tmp_path):
        (tmp_path / "again").mkdir()
        (tmp_path / "again" / "before").symlink_to(split[0] / "parts")
        model = str(tiny("llama"))
        train_split(tmp_path / "again", 2, model=model)
        policy, _, _ = train_here(recipe(model), split[0] / "parts")
        whole = torch.load(tmp_path / "again" / "whole.pt", weights_only=True)
        for name, parameter in policy.trainable().items():
            torch.testing.assert_close(whole[name], parameter.detach(), rtol=0, atol=1e-5)


@pytest.mark.slow
class TestReading:
    @pytest.fixture
    def parts(self, split, tmp_path) -> Path:
        """Return a copy of the parts, to be damaged."""
        for path in (split[0] / "parts").iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        return tmp_path

    def read(self, tiny, parts: Path, kind: str = "llama") -> None:
        policy = load(recipe(str(tiny(kind))))
        read_shards(parts, build_optimizer(policy, recipe(str(tiny(kind))).optimizer), policy.trainable(), alone=True)

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_a_missing_part_is_refused(self, tiny, parts, number):
        (parts / f"shard-0000{number}-model-00001-of-00001.safetensors").unlink()
        with pytest.raises(InputError, match=r"a part .*missing"):
            self.read(tiny, parts)

    def test_another_models_parts_are_refused(self, tiny, parts):
        with pytest.raises(InputError, match="another model's run"):
            self.read(tiny, parts, "gpt2")

    def test_an_undivided_optimizer_can_be_read(self, tiny, tmp_path):
        settings = recipe(str(tiny("llama")))
        policy, _, optimizer = train_here(settings)
        write_optimizer(optimizer, policy.trainable(), tmp_path)
        ours, theirs = (build_optimizer(policy, settings.optimizer) for _ in range(2))
        read_shards(tmp_path, ours, policy.trainable(), alone=True)
        read_optimizer(theirs, policy.trainable(), tmp_path)
        for parameter in policy.trainable().values():
            for key in ("exp_avg", "exp_avg_sq", "step"):
                assert torch.equal(ours.state[parameter][key], theirs.state[parameter][key])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"lora": {"rank": 4}}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"}])
def test_other_policies_have_the_weights_of_one_process(tiny, tmp_path, options):
    model = str(tiny("llama"))
    train_split(tmp_path / "split", 2, model=model, **options)
    policy, _, _ = train_here(recipe(model, **options))
    whole = torch.load(tmp_path / "split" / "whole.pt", weights_only=True)
    # AdamW divides by the size of a gradient, the rounding of a tiny one too.
    tolerance = 2e-3 if "dtype" in options else 2e-4
    for name, parameter in policy.trainable().items():
        torch.testing.assert_close(whole[name], parameter.detach(), rtol=0, atol=tolerance)


def test_rounds_of_equal_size_and_what_fills_the_last():
    batches = some_batches()
    first, second = deal(batches, 2)
    assert [index for index, _ in first] == [0, 2] and [index for index, _ in second] == [1, None]
    filler = second[1][1]
    assert filler.completions == batches[2].completions and not filler.weights.any() and batches[2].weights.all()


def test_decoder_layers(tiny):
    assert {len(decoder_layers(load(recipe(str(tiny(kind)))).model)) for kind in ("llama", "gpt2")} == {2}
