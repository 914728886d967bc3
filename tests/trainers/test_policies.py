"""Policies that trainers wrote do on every target what the trainers' own inference does."""

from __future__ import annotations

import functools
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from lram_export import Bundle, ExportOptions, export_bundle
from lram_export.episodes.steps import random_steps
from lram_export.errors import CheckpointError, LramError, UsageError
from lram_export.runtimes import load_verifier
from lram_export.trainers.files import trainer_of
from lram_export.trainers.loading import TrainerOptions, load_trainer_policy
from lram_export.trainers.networks import Actor, Mean, Normalizer, perceptron, policy_of
from tests.conftest import SLOW, fail, succeed
from tests.trainers import trained
from tests.trainers.trained import ROWS, Trained

STEPS, CLOSE = 1000, 1e-5
EVERY = ("pytorch", "onnxruntime", "openvino", "native", "tensorrt", "tvm")
RSL = ("mlp", "lstm", "gru", "heteroscedastic")
SB3 = ("ppo", "a2c", "squashed", "sac", "tqc", "td3", "dqn", "pixels", "recurrent", "recurrent discrete")
ON_EVERY_TARGET = ("mlp", "lstm", "recurrent")
"""The others are so in the slow tests."""

DAMAGED = [
    b"",
    b"\x80\x05N.",
    b"junk",
    b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x80\x02]r\x00\xc2\xeb\x0b.",  # a place that would take gigabytes
    pickle.dumps(functools.reduce(lambda inner, _: [inner, inner], range(30), [])),  # a list of 2 ** 30
]
"""Files that are no statistics: they are named, in no time and with no memory."""

Make = Callable[[str], Trained]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    found: dict[str, Trained] = {}

    def make(name: str) -> Trained:
        if name not in found:
            train = trained.rsl if name in RSL else trained.stable_baselines
            found[name] = train(name, tmp_path_factory.mktemp("trained"))
        return found[name]

    return make


def compare(
    policy: Trained, bundle: Bundle, targets: tuple[str, ...], robot: Callable[[Any], Any] = lambda action: action
) -> None:
    """1,000 steps with resets beside the trainer's own, and what a robot makes of its actions."""
    spec = bundle.manifest.spec
    inputs = random_steps(spec, None, STEPS, seed=7, episode=97)
    observations, is_first = inputs["observation"], inputs["is_first"]
    if observations.dtype == np.float32:
        observations = 3 * observations + 1  # as the environments of `trained` have them
    runtimes = {target: load_verifier(target, bundle.load_artifact(target), 1)[0] for target in targets}
    for number in range(STEPS):
        expected = robot(policy.act(observations[number], is_first[number]))
        for target, runtime in runtimes.items():
            output = runtime.step(observations[number], is_first[number])["action"]
            if policy.discrete:
                assert np.array_equal(output, expected), (target, number)
            else:
                np.testing.assert_allclose(output, expected, atol=CLOSE, rtol=CLOSE, err_msg=f"{target}, step {number}")
    for runtime in runtimes.values():
        runtime.close()


@pytest.mark.parametrize("name", [*RSL, *SB3])
def test_a_thousand_steps_are_the_trainers_own(name: str, made: Make, tmp_path: Path) -> None:
    policy = made(name)
    read, assumed = load_trainer_policy(policy.path, TrainerOptions())
    targets = EVERY if name in ON_EVERY_TARGET else ("onnxruntime", "native")
    options = ExportOptions(targets, ROWS, report=False, reference_steps=16)
    compare(policy, export_bundle(read, None, tmp_path / "policy.lram", options), targets)
    assert assumed == []


@dataclass
class Joints:
    """What Isaac Lab's joint position action makes of a policy's, within limits: targets of joints, in rad."""

    reach: float
    clamped: int = 0
    SCALE: ClassVar = 0.5
    DEFAULT: ClassVar = np.array([0.1, 0.8, -1.5])

    def __call__(self, action: Any) -> Any:
        targets = action * self.SCALE + self.DEFAULT
        found = np.clip(targets, self.DEFAULT - self.reach, self.DEFAULT + self.reach)
        self.clamped += int((found != targets).sum())
        return found

    def interface(self) -> dict[str, Any]:
        """As `--interface` takes it: JSON is YAML, too."""
        scaling = {"scale": self.SCALE, "offset": self.DEFAULT.tolist()}
        limits = {"low": (self.DEFAULT - self.reach).tolist(), "high": (self.DEFAULT + self.reach).tolist()}
        action = {"elements": ["hip", "thigh", "calf"], "units": "rad", "scaling": scaling, "limits": limits}
        observation = {"elements": [f"o{i}" for i in range(trained.OBSERVATIONS)]}
        return {"rate": 50, "observation": {"observation": observation}, "action": {"action": action}}


class TestOfARobot:
    """Raw observations in, targets of joints out: what the trainer's network does, and what its environment does."""

    def check(self, policy: Trained, joints: Joints, folder: Path) -> None:
        bundle, robot = folder / "policy.lram", folder / "robot.yaml"
        robot.write_text(json.dumps(joints.interface()))
        targets = [word for target in EVERY for word in ("--target", target)]
        options = ("--interface", robot, "--batch", str(ROWS), "--reference-steps", "16", "--no-report")
        succeed("export", policy.path, "-o", bundle, *options, *targets)
        opened = Bundle.open(bundle)
        assert opened.manifest.interface.rate == 50
        assert opened.manifest.interface.action["action"].elements == ("hip", "thigh", "calf")
        compare(policy, opened, EVERY, joints)
        assert 0.02 < joints.clamped / (STEPS * ROWS * len(joints.DEFAULT)) < 0.98

    def test_rsl_rl_with_empirical_normalization(self, made: Make, tmp_path: Path) -> None:
        state = torch.load(made("mlp").path, weights_only=True)["actor_state_dict"]
        assert (state["obs_normalizer._mean"].abs() > 0.1).any() and (state["obs_normalizer._std"] > 1.5).any()
        self.check(made("mlp"), Joints(0.05), tmp_path)

    def test_stable_baselines3_with_running_means(self, tmp_path: Path) -> None:
        self.check(trained.normalized(tmp_path)[0], Joints(0.01), tmp_path)


class TestFromTheCommandLine:
    def test_a_file_of_each_is_exported_verified_and_run(self, made: Make, tmp_path: Path) -> None:
        for name in ("lstm", "a2c"):
            path, bundle = made(name).path, tmp_path / f"{name}.lram"
            succeed("export", path, "-o", bundle, "--no-report", "--precision", "int8", "--reference-steps", "8")
            succeed("verify", bundle, "--checkpoint", path, "--steps", "20")

    def test_other_commands_say_what_to_do(self, made: Make) -> None:
        code, line = fail("inspect", made("ppo").path)
        assert code == 2 and line.endswith(
            "a policy of stable-baselines3, which this command does not take; export it, and use the bundle"
        )

    @pytest.mark.parametrize(
        ("name", "options", "told"),
        [
            ("ppo", ("--act-dim", "3"), "--weights-key, --act-dim, .*: not for .*a policy of stable-baselines3"),
            ("ppo", ("--activation", "elu"), "--config, --activation: not for a policy of stable-baselines3"),
            ("ppo", ("--task", "metaworld/reach-v2"), "--task: .* does one thing only"),
            ("ppo", ("--normalization", "nowhere.pkl"), "--normalization: nowhere.pkl: no such file"),
            ("mlp", ("--normalization", "nowhere.pkl"), "--normalization: not for a policy of rsl_rl"),
            ("mlp", ("--activation", "sine"), "--activation: expected one of celu, .*, got 'sine'"),
            ("mlp", ("--config", "nowhere.yaml"), "--config: nowhere.yaml: No such file"),
        ],
    )
    def test_an_option_that_does_not_fit_is_named(
        self, name: str, options: tuple[str, ...], told: str, made: Make, tmp_path: Path
    ) -> None:
        code, line = fail("export", made(name).path, "-o", tmp_path / "p.lram", *options)
        assert code == 2 and re.search(told, line), line
        assert list(tmp_path.iterdir()) == []

    def test_weights_alone_and_a_part_of_a_file_are_named_before_a_task_is_asked_for(
        self, made: Make, tmp_path: Path
    ) -> None:
        import zipfile

        whole = made("ppo").path
        with zipfile.ZipFile(whole) as archive:
            (tmp_path / "policy.pth").write_bytes(archive.read("policy.pth"))
        (tmp_path / "cut.zip").write_bytes(whole.read_bytes()[:-400])
        told = {
            "policy.pth": "tensors of stable-baselines3; give the zip that model.save writes",
            "cut.zip": "damaged",
        }
        for name, words in told.items():
            code, line = fail("export", tmp_path / name, "-o", tmp_path / "p.lram")
            assert code == 1 and words in line, line

    def test_options_of_trainers_are_not_for_checkpoints(self, tmp_path: Path) -> None:
        golden = Path(__file__).parent.parent / "golden" / "state_m" / "model.zip"
        _, line = fail(
            "export", golden, "-o", tmp_path / "p.lram", "--task", "metaworld/reach-v2", "--activation", "elu"
        )
        assert line == "error: --activation, --normalization: only for policies of rsl_rl and stable-baselines3"
        assert trainer_of(golden) is None


class TestNormalization:
    """Running means that lie beside a policy, or in a file of one's own."""

    def test_what_lies_beside_a_policy_is_used_and_said(self, tmp_path: Path) -> None:
        policy, _ = trained.normalized(tmp_path)
        read, assumed = load_trainer_policy(policy.path, TrainerOptions())
        assert assumed == ["observations are normalized as vecnormalize.pkl beside the policy says"]
        options = ExportOptions(("onnxruntime",), ROWS, report=False, reference_steps=16)
        compare(policy, export_bundle(read, None, tmp_path / "policy.lram", options), ("onnxruntime",))

    def test_an_npz_says_the_same(self, tmp_path: Path) -> None:
        policy, env = trained.normalized(tmp_path)
        (tmp_path / "vecnormalize.pkl").unlink()
        numbers = tmp_path / "normalization.npz"
        np.savez(numbers, mean=env.obs_rms.mean, var=env.obs_rms.var, epsilon=env.epsilon, clip=env.clip_obs)
        read, assumed = load_trainer_policy(policy.path, TrainerOptions(normalization=numbers))
        assert assumed == []
        options = ExportOptions(("onnxruntime",), ROWS, report=False, reference_steps=16)
        compare(policy, export_bundle(read, None, tmp_path / "policy.lram", options), ("onnxruntime",))

    @pytest.mark.parametrize(
        ("arrays", "told"),
        [
            ({"mean": np.zeros(9), "var": np.ones(9), "epsilon": 1e-8}, "clip: missing; np.savez"),
            ({"mean": np.zeros(8), "var": np.ones(8), "epsilon": 1e-8, "clip": 10.0}, r"mean: .* \(9,\), got \(8,\)"),
            ({"mean": np.zeros(9), "var": -np.ones(9), "epsilon": 1e-8, "clip": 10.0}, "that are positive"),
            ({"mean": np.zeros(9), "var": np.zeros(9), "epsilon": 0.0, "clip": 10.0}, "that are positive"),
            ({"mean": np.full(9, np.nan), "var": np.ones(9), "epsilon": 1e-8, "clip": 10.0}, "mean: .*finite"),
        ],
    )
    def test_numbers_that_do_not_fit_are_named(
        self, arrays: dict[str, Any], told: str, made: Make, tmp_path: Path
    ) -> None:
        np.savez(tmp_path / "n.npz", **arrays)
        with pytest.raises(CheckpointError, match=told):
            load_trainer_policy(made("ppo").path, TrainerOptions(normalization=tmp_path / "n.npz"))

    def test_without_a_bound_nothing_is_clipped(self, made: Make, tmp_path: Path) -> None:
        np.savez(tmp_path / "n.npz", mean=np.zeros(9), var=np.ones(9), epsilon=0.0, clip=np.inf)
        read, _ = load_trainer_policy(made("ppo").path, TrainerOptions(normalization=tmp_path / "n.npz"))
        plain, _ = load_trainer_policy(made("ppo").path, TrainerOptions())
        observation = 100 * torch.randn(4, 9)
        assert torch.equal(read.module(observation)[0], plain.module(observation)[0])

    def test_statistics_that_are_missing_are_asked_for(self, tmp_path: Path) -> None:
        policy, _ = trained.normalized(tmp_path)
        (tmp_path / "vecnormalize.pkl").rename(tmp_path / "elsewhere")
        with pytest.raises(UsageError, match="was trained with VecNormalize, whose statistics are not beside it"):
            load_trainer_policy(policy.path, TrainerOptions())
        load_trainer_policy(policy.path, TrainerOptions(normalization=Path("none")))
        (tmp_path / "elsewhere").rename(tmp_path / "rl_model_vecnormalize_96_steps.pkl")
        assert "rl_model_vecnormalize_96_steps.pkl" in load_trainer_policy(policy.path, TrainerOptions())[1][0]
        (tmp_path / "vecnormalize.pkl").write_bytes(b"")
        with pytest.raises(UsageError, match=r"which statistics .* there are rl_model_.*, vecnormalize.pkl"):
            load_trainer_policy(policy.path, TrainerOptions())

    @pytest.mark.parametrize("target", [*EVERY[:3], pytest.param("tvm", marks=SLOW)])
    def test_a_mean_that_is_large_beside_the_deviation_is_subtracted_exactly(self, target: str, tmp_path: Path) -> None:
        """Trainers do so in float64; OpenVINO would scale before it subtracts."""
        generator = torch.Generator().manual_seed(0)
        mean = 1013 + torch.randn((1, 8), generator=generator, dtype=torch.float64)
        head = perceptron([(torch.randn((3, 8), generator=generator) / 3, torch.zeros(3))], "tanh")
        actor = Actor([Normalizer(mean, torch.full((1, 8), 0.01), 10.0)], [], head, Mean())
        options = ExportOptions((target,), ROWS, report=False, reference_steps=4)
        bundle = export_bundle(policy_of(actor, 8, 3), None, tmp_path / "p.lram", options)
        runtime, _ = load_verifier(target, bundle.load_artifact(target), 1)
        for _ in range(10):
            observation = (mean + 0.01 * torch.randn((ROWS, 8), generator=generator, dtype=torch.float64)).float()
            expected = head(((observation.double() - mean) / 0.01).clamp(-10, 10).float())
            found = runtime.step(observation.numpy(), np.zeros(ROWS, np.float32))["action"]
            np.testing.assert_allclose(found, expected.detach(), atol=CLOSE, rtol=0)
        runtime.close()

    def test_a_pickle_that_wants_to_run_something_runs_nothing(self, made: Make, tmp_path: Path) -> None:
        witness = tmp_path / "witness"
        path = tmp_path / "vecnormalize.pkl"
        path.write_bytes(b"cos\nsystem\n(S'touch %b'\ntR." % str(witness).encode())
        with pytest.raises(CheckpointError, match=r"expected a VecNormalize of stable-baselines3, got 'os\.system'"):
            load_trainer_policy(made("ppo").path, TrainerOptions(normalization=path))
        assert not witness.exists()

    @pytest.mark.parametrize("content", DAMAGED)
    def test_a_file_of_something_else_is_named(self, content: bytes, made: Make, tmp_path: Path) -> None:
        path = tmp_path / "vecnormalize.pkl"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=str(path)):
            load_trainer_policy(made("ppo").path, TrainerOptions(normalization=path))


class TestRslRl:
    def test_without_a_configuration_the_activation_is_asked_for(self, made: Make, tmp_path: Path) -> None:
        alone = tmp_path / "model.pt"
        alone.write_bytes(made("mlp").path.read_bytes())
        with pytest.raises(UsageError, match=r"does not say how its layers are activated: .* --activation elu"):
            load_trainer_policy(alone, TrainerOptions())
        read, _ = load_trainer_policy(alone, TrainerOptions(activation="elu"))
        whole, _ = load_trainer_policy(made("mlp").path, TrainerOptions())
        observation = torch.randn(4, trained.OBSERVATIONS)
        assert torch.equal(read.module(observation)[0], whole.module(observation)[0])

    def test_outputs_that_may_be_more_than_actions_need_the_configuration(self, made: Make, tmp_path: Path) -> None:
        alone = tmp_path / "model.pt"
        alone.write_bytes(made("heteroscedastic").path.read_bytes())
        with pytest.raises(UsageError, match="has no deviation of its own"):
            load_trainer_policy(alone, TrainerOptions(activation="elu"))

    @pytest.mark.parametrize(
        ("name", "said"), [("mlp", "HeteroscedasticGaussianDistribution"), ("heteroscedastic", "GaussianDistribution")]
    )
    def test_the_configuration_of_another_run_is_noticed(
        self, name: str, said: str, made: Make, tmp_path: Path
    ) -> None:
        config = tmp_path / "agent.yaml"
        config.write_text(f"actor: {{activation: elu, distribution_cfg: {{class_name: {said}}}}}\n")
        with pytest.raises(CheckpointError, match=f"the configuration says {said}: it is another run's"):
            load_trainer_policy(made(name).path, TrainerOptions(config_file=config))

    @pytest.mark.parametrize("student", [False, True])
    @pytest.mark.parametrize("name", ["mlp", "lstm"])
    def test_files_of_before_version_5_are_the_same_policy(
        self, name: str, student: bool, made: Make, tmp_path: Path
    ) -> None:
        """Their names, as rsl_rl 3 gave them to the same modules."""
        whole = torch.load(made(name).path, weights_only=True)
        who, memory = ("student", "memory_s") if student else ("actor", "memory_a")
        renamed = {"mlp.": f"{who}.", "rnn.": f"{memory}.", "obs_normalizer.": f"{who}_obs_normalizer."}
        old = {}
        for key, value in whole["actor_state_dict"].items():
            prefix = next((p for p in renamed if key.startswith(p)), None)
            old["std" if prefix is None else renamed[prefix] + key.removeprefix(prefix)] = value
        other = {"teacher." if student else "critic.": whole["critic_state_dict"]}
        old |= {f"{prefix}0.weight": state["mlp.0.weight"] for prefix, state in other.items()}
        path = tmp_path / "model_1.pt"
        torch.save({"model_state_dict": old, "optimizer_state_dict": {}, "iter": 1, "infos": None}, path)
        (tmp_path / "params").mkdir()
        (tmp_path / "params" / "agent.yaml").write_text("policy: {class_name: ActorCritic, activation: elu}\n")
        assert trainer_of(path) == "rsl_rl"
        read, _ = load_trainer_policy(path, TrainerOptions())
        new, _ = load_trainer_policy(made(name).path, TrainerOptions())
        arguments = [torch.randn(4, trained.OBSERVATIONS), *(torch.randn(4, *f.shape) for f in new.state.values())]
        for one, expected in zip(read.module(*arguments), new.module(*arguments), strict=True):
            assert torch.equal(one, expected)

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ("actor: {distribution_cfg: {class_name: BetaDistribution}, activation: elu}", "'BetaDistribution' is not"),
            ("actor: {activation: sine}", "agent.yaml: activation: expected one of .* got 'sine'"),
            (
                "actor: {distribution_cfg: {class_name: mine:GaussianDistribution}}",
                "'mine:GaussianDistribution' is not",
            ),
            ("actor: {class_name: 'mine:TanhModel', activation: elu}", "class_name: 'mine:TanhModel' is not supported"),
            ("actor: {class_name: CNNModel, activation: elu}", "class_name: 'CNNModel' is not supported"),
            ("actor: {activation: elu}\nwhen: 2024-99-99", "not a readable YAML file"),
            ("- a list", "expected the settings of a run"),
            ("a: [", "not a readable YAML file"),
        ],
    )
    def test_settings_that_change_acting_are_refused_by_name(
        self, settings: str, told: str, made: Make, tmp_path: Path
    ) -> None:
        (tmp_path / "agent.yaml").write_text(settings)
        with pytest.raises(LramError, match=told):
            load_trainer_policy(made("mlp").path, TrainerOptions(config_file=tmp_path / "agent.yaml"))

    def test_objects_in_a_configuration_are_not_made(self, made: Make, tmp_path: Path) -> None:
        config, witness = tmp_path / "agent.yaml", tmp_path / "witness"
        run = f"[!!python/object/apply:os.system ['touch {witness}'], !mine {{a: 1}}]"
        config.write_text(f"actor: {{activation: elu}}\nother: {run}\n")
        load_trainer_policy(made("mlp").path, TrainerOptions(config_file=config))
        assert not witness.exists()

    def test_the_folder_says_nothing_about_the_network(self, made: Make, tmp_path: Path) -> None:
        alone = tmp_path / "student" / "model.pt"
        alone.parent.mkdir()
        alone.write_bytes(made("heteroscedastic").path.read_bytes())
        with pytest.raises(UsageError, match="has no deviation of its own"):
            load_trainer_policy(alone, TrainerOptions(activation="elu"))

    def test_settings_are_those_of_the_network_in_the_file(self, made: Make, tmp_path: Path) -> None:
        content = torch.load(made("mlp").path, weights_only=True)
        student, config = tmp_path / "student.pt", tmp_path / "agent.yaml"
        torch.save({"student_state_dict": content["actor_state_dict"]}, student)
        config.write_text("actor: {activation: relu}\nstudent: {activation: elu}\n")
        read, _ = load_trainer_policy(student, TrainerOptions(config_file=config))
        expected, _ = load_trainer_policy(made("mlp").path, TrainerOptions())
        observation = torch.randn(4, trained.OBSERVATIONS)
        assert torch.equal(read.module(observation)[0], expected.module(observation)[0])

    @pytest.mark.parametrize(
        "content",
        [
            {"student_state_dict_x": {"mlp.0.weight": torch.zeros(1)}},
            {"actor_state_dict": None, "x": {"mlp.0.weight": torch.zeros(1)}},
            {"model_state_dict": [torch.zeros(1)], "x": {"actor.0.weight": torch.zeros(1)}},
        ],
    )
    def test_a_file_of_another_script_is_one_line(self, content: Any, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match="expected weights under one of actor_state_dict"):
            load_trainer_policy(tmp_path / "model.pt", TrainerOptions(activation="elu"))
        torch.save(torch.zeros(3), tmp_path / "other.pt")
        with pytest.raises(UsageError, match="no policy of rsl_rl or stable-baselines3"):
            load_trainer_policy(tmp_path / "other.pt", TrainerOptions(activation="elu"))

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"mlp.2.weight": torch.zeros(16, 23)}, r"mlp\.2\.weight: expected 24 columns, .* got 23"),
            ({"mlp.0.weight": None}, "obs_normalizer: expected 24 inputs, got 9"),
            ({"mlp.0.bias": torch.full((24,), torch.nan)}, r"mlp\.0\.bias'?: expected finite"),
            ({"mlp.0.bias": torch.zeros(3)}, r"mlp\.0\.bias: expected 24 numbers, got 3"),
            ({"cnns.rgb.0.weight": torch.zeros(1)}, "'cnns.rgb.0.weight': a part of the network that is not known"),
            ({"obs_normalizer._mean": torch.zeros(1, 7), "obs_normalizer._std": torch.ones(1, 7)}, "expected 9 inputs"),
        ],
    )
    def test_weights_that_do_not_fit_are_named(
        self, change: dict[str, Any], told: str, made: Make, tmp_path: Path
    ) -> None:
        content = torch.load(made("mlp").path, weights_only=True)
        state = {**content["actor_state_dict"], **change}
        content["actor_state_dict"] = {name: value for name, value in state.items() if value is not None}
        torch.save(content, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match=told):
            load_trainer_policy(tmp_path / "model.pt", TrainerOptions(activation="elu"))


class TestStableBaselines:
    def changed(self, path: Path, change: Callable[[dict[str, Any]], None], to: Path) -> Path:
        import zipfile

        with zipfile.ZipFile(path) as whole, zipfile.ZipFile(to, "w") as other:
            for name in whole.namelist():
                content = whole.read(name)
                if name == "data":
                    data = json.loads(content)
                    change(data)
                    content = json.dumps(data).encode()
                other.writestr(name, content)
        return to

    @pytest.mark.parametrize(
        ("name", "change", "told"),
        [
            (
                "ppo",
                lambda d: d["policy_class"].update(__module__="sb3_contrib.common.maskable.policies"),
                "policy_class: 'sb3_contrib.common.maskable.policies' is not supported; PPO, A2C",
            ),
            ("ppo", lambda d: d["policy_kwargs"].update(frobnicate=1), "policy_kwargs: 'frobnicate': '1' is not supp"),
            ("pixels", lambda d: d["policy_kwargs"].update(normalize_images=False), "'normalize_images': 'False'"),
            (
                "ppo",
                lambda d: d["policy_kwargs"].update(activation_fn="<class 'mine.ELU'>"),
                "activation_fn: .*mine.ELU",
            ),
            (
                "pixels",
                lambda d: d["policy_kwargs"].update(features_extractor_class="<class 'mine.NatureCNN'>"),
                "'features_extractor_class': .*mine.NatureCNN.* is not supported",
            ),
            ("sac", lambda d: d.update(use_sde=True), "use_sde: not supported"),
            ("ppo", lambda d: d.update(action_space="Box(3)"), "action_space: expected a space, got 'Box"),
            (
                "ppo",
                lambda d: d.update(action_space=d["observation_space"]),
                r"action_space: shape \(9,\) does not fit",
            ),
            ("a2c", lambda d: d.update(observation_space=d["action_space"]), "observation_space: 'Discrete' is not"),
        ],
    )
    def test_what_changes_acting_and_is_not_supported_is_refused_by_name(
        self, name: str, change: Callable[[dict[str, Any]], None], told: str, made: Make, tmp_path: Path
    ) -> None:
        path = self.changed(made(name).path, change, tmp_path / "changed.zip")
        with pytest.raises(CheckpointError, match=told):
            load_trainer_policy(path, TrainerOptions())


class TestWholeNumbers:
    """Observations of bytes are an image, divided by 255, only where the trainer takes them for one."""

    @pytest.mark.parametrize(("shape", "highest"), [((3, 4, 5), 10), ((3, 4, 5), 255), ((6,), 255), ((2, 3), 255)])
    def test_they_are_what_the_trainer_makes_of_them(
        self, shape: tuple[int, ...], highest: int, tmp_path: Path
    ) -> None:
        import stable_baselines3 as sb3
        from gymnasium import spaces

        env = trained.Reach()
        env.observation_space = spaces.Box(0, highest, shape, np.uint8)
        model = sb3.PPO("MlpPolicy", env, n_steps=32, batch_size=16, seed=0, device="cpu")
        model.save(tmp_path / "model.zip")
        read, _ = load_trainer_policy(tmp_path / "model.zip", TrainerOptions())
        observation = np.random.default_rng(0).integers(0, highest + 1, (5, *shape), np.uint8)
        expected, _ = model.predict(observation, deterministic=True)
        found = read.module(torch.from_numpy(observation))[0]
        np.testing.assert_allclose(found, expected, atol=CLOSE, rtol=0)


@SLOW
@pytest.mark.parametrize("name", sorted({*RSL, *SB3} - {*ON_EVERY_TARGET}))
def test_the_others_on_every_target(name: str, made: Make, tmp_path: Path) -> None:
    policy = made(name)
    options = ExportOptions(EVERY, ROWS, report=False, reference_steps=16)
    read, _ = load_trainer_policy(policy.path, TrainerOptions())
    compare(policy, export_bundle(read, None, tmp_path / "policy.lram", options), EVERY)
