"""The measure of one-piece figures: what it takes for the figure, and how it counts pieces."""

import torch

from aicl.evaluation.metric import Observed, build_evaluators, get_metric
from aicl.puppets.figure import count_pieces, figure_mask
from aicl.puppets.programs import program_bank
from aicl.puppets.renderer import render
from aicl.puppets.samples import PuppetData, draw_samples


def test_figures_of_real_clips_are_found_and_are_one_piece():
    scenes = draw_samples(PuppetData(), 3, 0, 10).targets
    drawn = render(scenes, program_bank(0, 0), 64, 4, cover=True)
    clips, truth = drawn[:, :3], drawn[:, 3] > 0.5
    mask = figure_mask(clips)
    overlap = (mask & truth).flatten(1).sum(1) / (mask | truth).flatten(1).sum(1)
    assert overlap.mean() > 0.8 and overlap.min() > 0.6
    evaluator = build_evaluators({"figure": {"kind": "puppets_figure"}}, "cpu")["figure"]
    seen = {f"figure.{name}": value for name, value in evaluator.observe(clips).items()}
    shares = get_metric("whole_figure").values(Observed(videos=seen))
    assert shares.shape == (10,) and shares.mean() > 0.85

    cut = clips.clone()  # the waist becomes wall: a figure in two pieces
    for i, t in torch.cartesian_prod(torch.arange(10), torch.arange(4)).tolist():
        rows = truth[i, t].any(1).nonzero()
        middle = int(rows.float().mean())
        cut[i, :, t, middle - 2 : middle + 3] = cut[i, :, t, middle - 2 : middle + 3, :1]
    seen = {"figure.pieces": evaluator.observe(cut)["pieces"]}
    assert get_metric("whole_figure").values(Observed(videos=seen)).mean() < 0.2


def test_pieces_are_connected_components_without_specks():
    mask = torch.zeros(5, 64, 64, dtype=torch.bool)
    mask[0, 10:20, 10:20] = mask[0, 20:30, 20:30] = True  # they touch at a corner
    mask[1, 10:20, 10:20] = mask[1, 40:50, 10:20] = True
    mask[1, 60, 60:63] = True  # a speck
    for row in range(0, 64, 2):  # a snake through the whole picture
        mask[2, row] = True
        mask[2, row + 1, (63 if row % 4 else 0)] = True
    mask[3, 5:9, 5:9] = True
    assert count_pieces(mask).tolist() == [1, 2, 1, 1, 0]
    assert count_pieces(mask[:, None]).shape == (5, 1)
