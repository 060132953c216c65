"""The puppet world: how figures move, how they are drawn, and what is really different."""

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from aicl.puppets.actions import ACTIONS, INDEX, SEEN_INDICES, UNSEEN, UNSEEN_INDICES, action_programs, pose_distances
from aicl.puppets.motion import action, keys, peak
from aicl.puppets.programs import FIRST_RANDOM, program_bank, random_programs
from aicl.puppets.renderer import joint_positions, render
from aicl.puppets.scene_parameters import FIELD, FIELDS, draw_scene_parameters, uniforms
from aicl.puppets.skeleton import CHANNEL, CHANNELS, JOINT, JOINTS, PHASES, PROPORTIONS, pose

BANK = program_bank(64, seed=0)


def scenes(motions, stream=9, **values):
    motions = np.asarray(motions)
    rows = torch.from_numpy(
        draw_scene_parameters(uniforms(0, np.arange(len(motions)), len(FIELDS) + 2, stream=stream), motions)
    )
    for name, value in values.items():
        rows[:, FIELD[name]] = value
    return rows


def plain_pose(**channels):
    program = torch.from_numpy(action("test", "test", 1.0, **channels).program.copy())[None]
    return dict(zip(JOINTS, pose(program, torch.zeros(1, 1))[0, 0]))


class TestSkeleton:
    def test_stands_upright_on_the_ground(self):
        joints = plain_pose()
        assert min(point[1] for point in joints.values()) == 0
        assert 1.5 < joints["head"][1] < 1.7
        assert joints["L_hip"][0] > 0 > joints["R_hip"][0]

    def test_angles_move_limbs_where_their_names_say(self):
        raised = plain_pose(right_arm_swing=90, right_elbow=0, right_arm_lift=0)
        assert raised["R_hand"][2] > 0.5 and abs(raised["R_hand"][1] - raised["R_shoulder"][1]) < 1e-3
        spread = plain_pose(left_arm_lift=90, left_elbow=0)
        assert spread["L_hand"][0] > 0.7 and abs(spread["L_hand"][1] - spread["L_shoulder"][1]) < 1e-3
        assert plain_pose(both_knee=90)["L_ankle"][2] < plain_pose()["L_ankle"][2] - 0.3

    def test_lengths_of_bones_do_not_depend_on_the_pose(self):
        programs, _ = action_programs()
        proportions = torch.linspace(0.9, 1.1, len(PROPORTIONS)).expand(len(programs), -1)
        joints = pose(programs, torch.rand(len(programs), 5), proportions=proportions)
        for start, end, length in (
            ("L_elbow", "L_hand", 0.27 * proportions[0, 3]),
            ("R_hip", "R_knee", 0.43 * proportions[0, 5]),
        ):
            distance = (joints[:, :, JOINT[start]] - joints[:, :, JOINT[end]]).norm(dim=-1)
            torch.testing.assert_close(distance, torch.full_like(distance, float(length)), atol=1e-4, rtol=0)

    def test_full_turns_join_and_keep_their_amplitude(self):
        program = torch.from_numpy(ACTIONS[INDEX["arm_circles"]].program.copy())[None]
        around = pose(program, torch.tensor([[0.0, 1.0, -3.0]]), amplitude=torch.tensor([0.5]))
        torch.testing.assert_close(around[:, 0], around[:, 1])
        torch.testing.assert_close(around[:, 0], around[:, 2])
        quarter = pose(program, torch.tensor([[0.5]]), amplitude=torch.tensor([0.5]))
        assert quarter[0, 0, JOINT["L_hand"], 1] > quarter[0, 0, JOINT["L_shoulder"], 1]  # half a turn: overhead

    def test_curves_are_periodic(self):
        curve = keys((0.1, 5.0), (0.6, 50.0))
        assert (
            curve[0] == pytest.approx(curve[-1]) and curve.min() >= 5.0 and curve.max() == pytest.approx(50.0, abs=0.5)
        )
        assert peak(0.0)[0] == peak(0.0)[-1] == 1.0

    def test_an_unknown_channel_is_refused(self):
        with pytest.raises(KeyError, match="both_wing"):
            action("fly", "fly", 1.0, both_wing=3)


class TestActions:
    def test_there_are_enough_and_ten_are_unseen(self):
        assert len(ACTIONS) >= 60 and len(UNSEEN) == 10
        assert len({a.name for a in ACTIONS}) == len({a.phrase for a in ACTIONS}) == len(ACTIONS)
        assert set(SEEN_INDICES) | set(UNSEEN_INDICES) == set(range(len(ACTIONS)))

    def test_all_differ_by_a_margin_in_pose_space(self):
        programs, _ = action_programs()
        distances = pose_distances(programs, programs)
        assert distances.diagonal().max() < 1e-6
        distances.fill_diagonal_(torch.inf)
        assert distances.min() > 0.09
        assert distances[list(UNSEEN_INDICES)].min() > 0.15

    def test_the_distance_ignores_phase_and_side(self):
        programs, _ = action_programs()
        chosen = programs[[INDEX["kick"], INDEX["hammer"]]]
        shifted = torch.cat([chosen[:, :, 7:-1], chosen[:, :, :8]], 2)
        mirrored = shifted.clone()
        for name, index in CHANNEL.items():
            if name.startswith("left_"):
                other = CHANNEL[name.replace("left_", "right_")]
                mirrored[:, [index, other]] = shifted[:, [other, index]]
            elif name in ("x", "yaw", "roll", "spine_lean", "spine_twist", "head_turn"):
                mirrored[:, index] = -shifted[:, index]
        for copy in (shifted, mirrored):
            assert pose_distances(chosen, copy).diagonal().max() < 1e-5


class TestRandomPrograms:
    def test_each_is_a_function_of_its_number(self):
        programs, cycles = random_programs(5, np.arange(40))
        some, some_cycles = random_programs(5, np.array([31, 2]))
        assert np.array_equal(some, programs[[31, 2]]) and np.array_equal(some_cycles, cycles[[31, 2]])
        assert not np.array_equal(random_programs(6, np.array([2]))[0], some[1:])

    def test_they_are_smooth_periodic_and_bend_joints_one_way(self):
        programs, cycles = random_programs(1, np.arange(400))
        assert programs.shape == (400, len(CHANNELS), PHASES) and np.isfinite(programs).all()
        seam = np.abs(programs[:, :, -1] - programs[:, :, 0])
        assert np.all((seam < 1e-3) | (np.abs(seam - 360) < 1e-2))
        for side in ("left", "right"):
            for joint in ("knee", "elbow"):
                assert programs[:, CHANNEL[f"{side}_{joint}"]].min() > -1e-3
        assert cycles.min() >= 0.9
        assert cycles.max() <= 2.3

    def test_none_is_an_unseen_action(self):
        unseen = action_programs()[0][list(UNSEEN_INDICES)]
        assert pose_distances(BANK[0][FIRST_RANDOM:], unseen).min() > 0.1

    def test_the_bank_begins_with_the_actions(self):
        programs, cycles = action_programs()
        assert torch.equal(BANK[0][:FIRST_RANDOM], programs) and torch.equal(BANK[1][:FIRST_RANDOM], cycles)
        assert len(BANK[0]) == FIRST_RANDOM + 64


class TestRenderer:
    def test_a_clip_does_not_depend_on_its_batch(self):
        rows = scenes([0, INDEX["cartwheel"], FIRST_RANDOM + 3, 7, 20])
        whole = render(rows, BANK, size=48, frames=4)
        parts = torch.cat([render(part, BANK, size=48, frames=4) for part in (rows[:1], rows[1:4], rows[4:])])
        assert torch.equal(whole, parts)

    @pytest.mark.parametrize("size", [64, 96])
    def test_shape_range_and_figure_height(self, size):
        rows = scenes([INDEX["sway"]] * 3, camera_zoom=1.0, height=1.0, background_striped=0.0, camera_pan_x=0.0)
        frames = render(rows, BANK, size=size, frames=3)
        assert frames.shape == (3, 3, 3, size, size) and frames.dtype == torch.float32
        assert frames.min() >= -1 and frames.max() <= 1
        wall = frames[..., :1]  # the left column shows wall and floor only
        covered = ((frames - wall).abs().amax(1) > 0.25).any(-1)  # (b, t, rows)
        assert (covered.sum(-1).float() / size).mean() == pytest.approx(0.7, abs=0.08)

    def test_compiled_it_is_the_same_picture_in_one_graph(self):
        torch._dynamo.reset()
        rows = scenes([0, 5, FIRST_RANDOM + 3])
        with torch.compiler.set_stance(force_backend="aot_eager"):  # graphs as in earnest, but no C++ is built
            before = counters["stats"]["unique_graphs"]
            compiled = render(rows, BANK, 32, 4, compiled=True)
            assert counters["stats"]["unique_graphs"] == before + 1 and not counters["graph_break"]
        torch.testing.assert_close(compiled, render(rows, BANK, 32, 4), rtol=0, atol=1e-4)

    def test_one_frame_is_the_first_of_many(self):
        rows = scenes([3, 4])
        torch.testing.assert_close(render(rows, BANK, 32, 1), render(rows, BANK, 32, 8)[:, :, :1])

    def test_colours_are_the_named_ones(self):
        rows = scenes([INDEX["spin"]], shirt=4.0, trousers=0.0, skin=0.0, shirt_striped=0.0, amplitude=1.0)
        picture = (render(rows, BANK, 64, 1)[0, :, 0] + 1) / 2
        blue = (picture[2] > 0.5) & (picture[0] < 0.25)
        red = (picture[0] > 0.5) & (picture[2] < 0.2)
        assert blue.sum() > 40 and red.sum() > 40
        assert blue.nonzero()[:, 0].float().mean() < red.nonzero()[:, 0].float().mean()  # shirt above trousers

    def test_mirroring_flips_the_joints(self):
        rows = scenes([INDEX["wave"]] * 2, camera_yaw=0.0, camera_pitch=0.0)
        rows[1] = rows[0]
        rows[:, FIELD["mirror"]] = torch.tensor([1.0, -1.0])
        right, left = joint_positions(rows, BANK, 4)
        torch.testing.assert_close(left[..., 0], -right[..., 0])
        torch.testing.assert_close(left[..., 1:], right[..., 1:])

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_a_gpu_draws_the_same_picture(self):
        rows = scenes([0, 9, 30])
        cuda = render(rows.cuda(), tuple(part.cuda() for part in BANK), 64, 4)
        assert (cuda.cpu() - render(rows, BANK, 64, 4)).abs().mean() < 1e-4
        assert torch.equal(cuda[1:2], render(rows[1:2].cuda(), tuple(part.cuda() for part in BANK), 64, 4))
