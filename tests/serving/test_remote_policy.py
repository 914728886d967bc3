"""What a robot gets from a server is what a policy of its own would give it, to the bit, whatever the network does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lram_export import Policy, RemotePolicy, load_policy
from lram_export.errors import RemoteError, StepError, UsageError
from lram_export.runtimes import RUNTIMES
from lram_export.serving.server import PolicyServer
from tests.conftest import ExportFunction, load_golden
from tests.serving.conftest import ServeFunction
from tests.serving.network import Network

STEPS = 12


class Robot:
    """One that does the same with a remote policy and with one of its own, and compares everything."""

    def __init__(self, remote: RemotePolicy, own: Policy, seed: int) -> None:
        self.remote, self.own, self.random = remote, own, np.random.default_rng(seed)
        self.fresh, self.steps = True, 0

    def step(self) -> None:
        observation = self.random.standard_normal(204).astype(np.float32)
        reward = None if self.fresh else float(self.random.normal())
        first = True if self.random.random() < 0.1 else None
        action = self.remote.act(observation, reward, first=first)
        np.testing.assert_array_equal(action, self.own.act(observation, reward, first=first))
        np.testing.assert_array_equal(self.remote.action_logits, self.own.action_logits)
        assert self.remote.return_to_go == self.own.return_to_go
        self.fresh, self.steps = False, self.steps + 1

    def reset(self, target_return: float | None = None) -> None:
        self.remote.reset(target_return=target_return)
        self.own.reset(target_return=target_return)
        assert self.remote.return_to_go == self.own.return_to_go
        self.fresh = True


@pytest.fixture
def server(serve: ServeFunction) -> PolicyServer:
    return serve()


@pytest.fixture
def own(small: Path) -> Iterator[Policy]:
    with load_policy(small, "native", threads=1) as policy:
        yield policy


@pytest.mark.parametrize("target", RUNTIMES)
def test_every_target_acts_as_in_the_robots_own_process(target: str, small: Path, serve: ServeFunction) -> None:
    server = serve(target=target)
    with RemotePolicy(server.url) as remote, load_policy(small, target, threads=1) as own:
        assert (remote.spec, remote.task, remote.interface) == (own.spec, own.task, own.interface)
        assert remote.description.bundle == own.origin.digest and remote.description.target == target  # type: ignore[union-attr]
        robot = Robot(remote, own, 0)
        for step in range(STEPS):
            robot.step()
            if step == STEPS // 2:
                robot.reset(3.0)


def test_discrete_actions_from_images(exported: ExportFunction, serve: ServeFunction) -> None:
    bundle, images = exported("image_m"), load_golden("image_m").trace["observations"]
    server = serve(bundle)
    with RemotePolicy(server.url) as remote, load_policy(bundle, "native", threads=1) as own:
        for image in images[:4]:
            action, expected = remote.act(image), own.act(image)
            assert type(action) is type(expected) and action == expected
        assert remote.act(images[0][None]).shape == (1,)


def test_robots_come_and_go_and_never_get_what_is_anothers(small: Path, serve: ServeFunction) -> None:
    """Five robots, one after the other and side by side, on three seats."""
    server = serve(robots=3)
    robots: list[Robot] = []
    random = np.random.default_rng(1)
    try:
        for round_ in range(60):
            if len(robots) < 3 and random.random() < 0.5:
                own = load_policy(small, "native", threads=1)
                robots.append(Robot(RemotePolicy(server.url), own, round_))
            for robot in robots:
                robot.step()
                if random.random() < 0.1:
                    robot.reset(float(random.normal()))
            if robots and random.random() < 0.15:
                left = robots.pop(int(random.integers(len(robots))))
                left.remote.close()
                left.own.close()
    finally:
        for robot in robots:
            robot.remote.close()
            robot.own.close()
    assert server.measures.sessions >= 5


def test_robots_at_the_same_time_are_stepped_together_and_get_what_is_theirs(small: Path, serve: ServeFunction) -> None:
    server = serve(robots=4, window=0.02)
    failed: list[BaseException] = []

    def run(seed: int) -> None:
        try:
            with RemotePolicy(server.url) as remote, load_policy(small, "native", threads=1) as own:
                robot = Robot(remote, own, seed)
                for step in range(STEPS):
                    robot.step()
                    if step == seed:
                        robot.reset()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert server.measures.steps == 4 * STEPS and max(server.measures.batches) > 1


class TestNetwork:
    @pytest.fixture
    def network(self, server: PolicyServer) -> Iterator[Network]:
        network = Network(server.address.host, server.address.port)
        yield network
        network.close()

    def test_an_answer_that_is_lost_is_sent_again_and_no_step_is_made_twice(
        self, network: Network, server: PolicyServer, own: Policy
    ) -> None:
        with RemotePolicy(f"grpc://127.0.0.1:{network.port}") as remote:
            robot = Robot(remote, own, 0)
            for _ in range(6):
                robot.step()
                network.lose_the_next_answer()
                robot.step()
        assert server.measures.steps == robot.steps and server.measures.repeated == 6
        assert network.connections == 7

    def test_connections_that_break_at_any_time_change_nothing(
        self, network: Network, server: PolicyServer, own: Policy
    ) -> None:
        over = threading.Event()

        def cut() -> None:
            random = np.random.default_rng(2)
            while not over.wait(random.uniform(0.0, 0.03)):
                network.cut()

        vandal = threading.Thread(target=cut)
        with RemotePolicy(f"grpc://127.0.0.1:{network.port}", timeout=30.0, retries=1000) as remote:
            robot = Robot(remote, own, 0)
            vandal.start()
            try:
                while network.connections < 8 and robot.steps < 500:
                    robot.step()
                    if robot.steps % 7 == 0:
                        robot.reset(1.0)
            finally:
                over.set()
                vandal.join()
        assert server.measures.steps == robot.steps

    def test_a_call_that_gave_up_is_finished_before_the_next(self, network: Network, own: Policy) -> None:
        inputs = np.random.default_rng(3).standard_normal((4, 204)).astype(np.float32)
        with RemotePolicy(f"grpc://127.0.0.1:{network.port}", retries=0) as remote:
            remote.act(inputs[0])
            network.lose_the_next_answer()
            with pytest.raises(RemoteError, match="not reached"):
                remote.act(inputs[1], 0.5)
            actions = [own.act(inputs[0]), own.act(inputs[1], 0.5), own.act(inputs[2], 1.0)]
            remote._connection.retries = 20
            np.testing.assert_array_equal(remote.act(inputs[2], 1.0), actions[2])

    def test_a_server_that_is_gone_is_said_in_one_line(self, network: Network) -> None:
        with RemotePolicy(f"grpc://127.0.0.1:{network.port}", retries=2, timeout=2.0) as remote:
            network.close()
            with pytest.raises(RemoteError, match=rf"^grpc://127.0.0.1:{network.port}: not reached: "):
                remote.act(np.zeros(204))


class TestErrors:
    @pytest.mark.parametrize(
        ("observation", "reward", "first"),
        [
            (np.zeros(3), None, None),
            ("text", None, None),
            ([float("nan")] * 204, None, None),
            ([0.0] * 203 + [1e30], None, None),
            (np.zeros((2, 204)), None, None),
            ({"image": np.zeros(204)}, None, None),
            (np.zeros(204), "much", None),
            (np.zeros(204), [1.0, 2.0], None),
            (np.zeros(204), None, "yes"),
        ],
    )
    def test_a_wrong_step_is_refused_as_a_policy_refuses_it_and_changes_nothing(
        self, observation: Any, reward: Any, first: Any, server: PolicyServer, own: Policy
    ) -> None:
        with RemotePolicy(server.url) as remote:
            robot = Robot(remote, own, 0)
            robot.step()
            said = []
            for policy in (remote, own):
                with pytest.raises(ValueError) as caught:
                    policy.act(observation, reward, first=first)
                said.append(str(caught.value))
            assert said[0] == said[1]
            robot.step()

    def test_a_reward_that_is_missing_or_infinite_is_refused_alike(self, server: PolicyServer, own: Policy) -> None:
        with RemotePolicy(server.url) as remote:
            for reward in (None, float("inf"), float("nan")):
                robot = Robot(remote, own, 0)
                robot.reset()
                robot.step()
                said = []
                for policy in (remote, own):
                    with pytest.raises(ValueError, match="reward") as caught:
                        policy.act(np.zeros(204), reward)
                    said.append(str(caught.value))
                assert said[0] == said[1]

    @pytest.mark.parametrize("wrong", ["x", float("nan"), [1.0, 2.0], 1e300])
    def test_a_wrong_target_return_is_refused_alike(self, wrong: Any, server: PolicyServer, own: Policy) -> None:
        said = []
        with RemotePolicy(server.url) as remote:
            for policy in (remote, own):
                with pytest.raises(ValueError, match="target_return") as caught:
                    policy.reset(target_return=wrong)
                said.append(str(caught.value))
            assert said[0] == said[1]

    def test_what_only_the_server_can_refuse_is_raised_as_it_raised_it(self, server: PolicyServer, own: Policy) -> None:
        with RemotePolicy(server.url) as remote:
            wrong = {**remote.state(), "is_first": np.array([7.0], np.float32)}
            strange = {**remote.state(), "weights": np.zeros(32, np.uint8)}
            for state in (wrong, strange):
                said = []
                for policy in (remote, own):
                    with pytest.raises(ValueError) as caught:
                        policy.load_state(state)
                    said.append(str(caught.value))
                assert said[0] == said[1]
            remote.load_state(strange, force=True)
            with pytest.raises(ValueError, match="its interface says no limits and no safety"):
                remote.hold(np.zeros(8))

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"timeout": 0}, "timeout: expected seconds"),
            ({"timeout": float("nan")}, "timeout: expected seconds"),
            ({"retries": -1}, "retries: expected 0 to 1000"),
            ({"token": "short"}, "token: expected 16 to 256"),
            ({"ca": "missing.pem"}, "ca: only with grpcs://"),
            ({"outputs": ["action_logits"]}, "outputs: expected action among them"),
        ],
    )
    def test_arguments_that_make_no_sense(self, options: dict[str, Any], said: str, server: PolicyServer) -> None:
        with pytest.raises(UsageError, match=said):
            RemotePolicy(server.url, **options)

    @pytest.mark.parametrize("url", ["", "127.0.0.1:1", "http://127.0.0.1:1", "grpc://127.0.0.1", "grpc://h:99999"])
    def test_addresses_that_are_none(self, url: str) -> None:
        with pytest.raises(UsageError, match="url: expected"):
            RemotePolicy(url)

    def test_a_token_is_not_sent_where_others_read_it(self) -> None:
        with pytest.raises(UsageError, match="would carry the token where others read it"):
            RemotePolicy("grpc://192.0.2.1:8431", token="t" * 32)

    def test_a_closed_policy_says_so(self, server: PolicyServer) -> None:
        remote = RemotePolicy(server.url)
        remote.close()
        remote.close()
        with pytest.raises(RuntimeError, match="closed"):
            remote.act(np.zeros(204))


class TestStates:
    def test_a_run_goes_on_elsewhere_and_back(self, server: PolicyServer, own: Policy) -> None:
        with RemotePolicy(server.url) as remote, RemotePolicy(server.url) as other:
            robot = Robot(remote, own, 0)
            for _ in range(4):
                robot.step()
            state = remote.state()
            np.testing.assert_equal(state, own.state())
            other.load_state(state)
            moved = Robot(other, own, 1)
            moved.fresh = False
            moved.step()
            assert other.return_to_go == own.return_to_go

    def test_a_state_that_is_lost_is_made_good_by_the_first_step_of_an_episode(
        self, server: PolicyServer, own: Policy
    ) -> None:
        with RemotePolicy(server.url) as remote:
            robot = Robot(remote, own, 0)
            robot.step()
            wild = {name: np.full_like(v, 1e17) if name.startswith("state.") else v for name, v in own.state().items()}
            said: list[list[str]] = [[], []]
            for lines, policy in zip(said, (remote, own), strict=True):
                policy.load_state(wild)
                for _ in range(2):
                    with pytest.raises(StepError, match="lost") as caught:
                        policy.act(np.ones(204), 1.0)
                    lines.append(str(caught.value))
            assert said[0] == said[1]
            np.testing.assert_array_equal(remote.act(np.ones(204), first=True), own.act(np.ones(204), first=True))
            for _ in range(3):
                robot.step()

    def test_only_the_outputs_that_are_wanted_are_sent(self, server: PolicyServer, own: Policy) -> None:
        with RemotePolicy(server.url, outputs=["action"]) as remote:
            np.testing.assert_array_equal(remote.act(np.zeros(204)), own.act(np.zeros(204)))
            assert set(remote.outputs) == set(remote.step(np.zeros(204), 1.0)) == {"action"}
            with pytest.raises(AttributeError, match="has no output 'action_logits'"):
                _ = remote.action_logits

    def test_actions_are_held_to_the_interfaces_safety_and_counted(self, held: Path, serve: ServeFunction) -> None:
        server = serve(held)
        random = np.random.default_rng(4)
        with RemotePolicy(server.url) as remote, load_policy(held, "native", threads=1) as own:
            for either in (remote, own):
                either.hold([0.1, 0.2])
            for step in range(30):
                seen = random.normal(0, 2, 2)
                np.testing.assert_array_equal(remote.act(seen), own.act(seen))
                if step % 9 == 8:
                    for either in (remote, own):
                        either.reset()
                        either.hold({"action": seen})
            found, expected = remote.counts(), own.counts()
            assert {name: of.to_json() for name, of in found.items()} == {
                name: of.to_json() for name, of in expected.items()
            }
            assert found["action"].slowed.sum() > 0
            for either in (remote, own):
                with pytest.raises(ValueError, match="action: expected numbers of shape"):
                    either.hold([[1.0], [2.0]])


def test_a_session_whose_seat_was_given_away_ends_and_the_next_episode_begins_on_another(
    serve: ServeFunction, own: Policy
) -> None:
    server = serve(idle=0.2, robots=1)
    inputs = np.random.default_rng(5).standard_normal((3, 204)).astype(np.float32)
    with RemotePolicy(server.url) as remote:
        remote.reset(target_return=2.0)
        remote.act(inputs[0])
        end = time.monotonic() + 10
        while not server.measures.expired and time.monotonic() < end:
            time.sleep(0.02)
        with RemotePolicy(server.url) as other:
            other.act(inputs[1])
            with pytest.raises(RemoteError, match=r"no such session: .*silent for more than 0\.2 s"):
                remote.act(inputs[1], 1.0)
            with pytest.raises(RemoteError, match="all seats are taken: this server has 1;"):
                remote.reset()
        remote.reset()
        own.reset(target_return=2.0)  # it aims at what it aimed at before
        np.testing.assert_array_equal(remote.act(inputs[2]), own.act(inputs[2]))
        assert remote.return_to_go == own.return_to_go
