"""Behind the page of `aicl demo`: the queue, what visitors may send, what is kept, and what repeats a result."""

import dataclasses
import os
import shlex
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from aicl.apps.web_demo import outputs, page, uploads
from aicl.apps.web_demo.jobs import JobQueue, State, Task
from aicl.apps.web_demo.models import example_clips, list_models
from aicl.apps.web_demo.service import Service, Settings
from aicl.apps.web_demo.work import Worker
from aicl.cli import parse
from aicl.cli.sample import _job_options
from aicl.extensions import load_extensions
from aicl.motion_features import MotionFeatures
from aicl.options import ModelOptions
from aicl.prompt_templates import PROMPT_TEMPLATES
from aicl.puppets.captions import parse as parse_caption
from aicl.sampling_jobs import Job, read_jobs
from aicl.sampling_records import check_files, read_record
from aicl.sampling_run import generate_samples
from lvdm.errors import CheckpointError, ConfigError, DataError, UserError
from lvdm.video import probe, read_frames, read_image, write_video
from tests.aicl.study_samples import write_sample
from tests.aicl.web_samples import CAPTIONS, PROMPT, write_models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    load_extensions()
    return write_models(tmp_path_factory.mktemp("web") / "models")


@pytest.fixture
def service(models, tmp_path):
    """A service whose only worker does nothing yet."""
    return Service(list_models(models)[0], tmp_path / "web", [lambda task: None])


def visitor(service, number: int = 0):
    return service.sessions.of(f"{number:022d}")


def task(number: int, steps: int = 1) -> Task:
    return Task(f"{number:012d}", f"session {number}", "model", Job(prompt="a dog runs"), steps)


def wait(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("waited for ten seconds in vain")


def test_ten_at_once_are_served_in_order_and_none_is_lost():
    """Also where some fail in ways that nobody thought of, and some are cancelled before and while they are made."""
    done, ended, gate = [], [], threading.Event()

    def work(task: Task) -> None:
        gate.wait(10)
        done.append(task.id)
        if task.id.endswith("3"):
            raise ZeroDivisionError
        if task.id.endswith("4"):
            raise ConfigError("this cannot be")
        if task.id.endswith("5"):
            task.cancel()
        for _ in range(task.total):
            task.step()

    queue = JobQueue([work], on_end=ended.append)
    tasks = [task(number, steps=3) for number in range(10)]
    for each in tasks:
        queue.add(each)
    with pytest.raises(UserError, match="not finished"):
        queue.add(dataclasses.replace(task(99), session="session 0"))
    queue.start()
    wait(lambda: tasks[0].state is State.RUNNING)
    assert [queue.ahead(each) for each in tasks] == list(range(10))
    queue.cancel(tasks[7])
    assert queue.ahead(tasks[8]) == 7
    gate.set()
    wait(lambda: len(ended) == 10)
    assert done == [each.id for each in tasks if each is not tasks[7]]
    states = [each.state for each in tasks]
    assert states[3:6] == [State.FAILED, State.FAILED, State.CANCELLED] and states[7] is State.CANCELLED
    assert {states[number] for number in (0, 1, 2, 6, 8, 9)} == {State.DONE}
    assert "went wrong on the server" in tasks[3].message and tasks[4].message == "this cannot be"
    assert queue.seconds_left(task(11, steps=3)) is not None
    queue.stop()


def test_two_workers_share_the_queue():
    together = threading.Barrier(2, timeout=10)
    queue = JobQueue([lambda task: together.wait() and None] * 2)
    tasks = [task(number) for number in range(6)]
    for each in tasks:
        queue.add(each)
    queue.start()
    wait(lambda: all(each.state is State.DONE for each in tasks))
    queue.stop()


def test_what_was_not_finished_is_taken_up_when_the_server_is_back(models, tmp_path):
    started, made = threading.Event(), []

    def endless(task: Task) -> None:
        started.set()
        while True:
            time.sleep(0.01)
            task.step()

    first = Service(list_models(models)[0], tmp_path, [endless])
    for number in range(3):
        first.submit(visitor(first, number), first.cards[0].name, f"{PROMPT} {number}", Settings(seed=number))
    first.start()
    assert started.wait(10)
    first.stop()

    second = Service(list_models(models)[0], tmp_path, [lambda task: made.append(task.job.seed)])
    assert second.shown(visitor(second, 1)).job.prompt == f"{PROMPT} 1"
    second.start()
    wait(lambda: len(made) == 3)
    wait(lambda: all(second.shown(visitor(second, number)).state is State.DONE for number in range(3)))
    assert made == [0, 1, 2]
    second.stop()


def test_a_full_queue_and_two_tasks_of_one_session_are_taken_up_too(models, tmp_path, monkeypatch):
    monkeypatch.setattr("aicl.apps.web_demo.jobs.MOST_WAITING", 2)
    first = Service(list_models(models)[0], tmp_path, [lambda task: None])
    kept = [first.submit(visitor(first, number), first.cards[0].name, PROMPT, Settings()) for number in range(2)]
    running = outputs.read_task(outputs.task_folder(visitor(first, 0).results, kept[0].id))
    running.id, running.created = "0" * 12, running.created - 1  # and the end of another one could not be written down
    running.job.out = str(outputs.task_folder(visitor(first, 0).results, running.id) / outputs.VIDEO)
    outputs.save_task(outputs.task_folder(visitor(first, 0).results, running.id), running)

    made = []
    second = Service(list_models(models)[0], tmp_path, [lambda task: made.append(task.id)])
    second.start()
    wait(lambda: len(made) == 3)
    assert made == [running.id, *(task.id for task in kept)]
    second.stop()


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    """A task with two references and two seeds that was really made, and the worker that made it."""
    os.chdir(tmp_path_factory.mktemp("server"))
    worker = Worker(ModelOptions(device="cpu"))
    service = Service(list_models(models)[0], Path("web"), [worker])
    session = visitor(service)
    service.retrieve(session, 0, PROMPT, "your prompt")
    own = uploads.reserve(session, "mine.mp4")[0]
    write_sample(own.with_suffix(".mp4"), 9, frames=6).rename(own)
    uploads.accept_video(session, own, "mine.mp4")
    settings = Settings(2, 5, 3, guidance_scale=3.0, first_reference_until=0.5, reference_guidance_scale=2.0)
    task = service.submit(session, service.cards[0].name, PROMPT, settings)
    service.start()
    wait(lambda: not task.state.active)
    service.stop()
    assert task.state is State.DONE, task.message
    return service, session, task, worker


def test_a_task_leaves_every_file_that_the_page_offers(finished):
    service, session, task, _ = finished
    for number, files in enumerate(outputs.sample_files(task)):
        assert files.seed == 5 + number and len(files.downloads) == 6
        assert probe(files.video).num_frames == probe(files.base).num_frames == 4
        assert Image.open(files.video.with_suffix(".gif")).n_frames == 4
    assert MotionFeatures.load(outputs.features_file(task)).frames == (4, 4)
    assert probe(outputs.clip_file(task, 2)).num_frames == 4
    assert [each.id for each in service.history(session)] == [task.id]
    assert service.result_file(session, task.id, "R.safetensors").is_file()
    with pytest.raises(DataError):
        service.result_file(visitor(service, 1), task.id, "R.safetensors")


def test_the_steps_that_the_sampler_takes_are_known_from_the_start_and_shown(finished, service):
    _, _, task, _ = finished
    assert task.done == task.total == 4 * 4  # for two seeds, and as many of the base; three were asked for
    assert " &middot; 4 steps (the model's timesteps for 3) &middot; guidance 3" in page.result(task, None)
    assert service.submit(visitor(service), task.model, PROMPT, Settings(num_inference_steps=3)).total == 4
    exact = dataclasses.replace(task, job=dataclasses.replace(task.job, num_inference_steps=4))
    assert " 4 steps &middot; guidance 3" in page.result(exact, None)


def test_the_command_line_and_the_record_of_a_result_repeat_it(finished):
    _, _, task, worker = finished
    _, _, *arguments = shlex.split(outputs.command_line(task))
    args = {name: value for name, value in vars(parse("sample", arguments)).items() if value is not None}
    assert args.pop("model") == task.model
    [job] = read_jobs(_job_options(args))
    told = [dataclasses.replace(each, caption=each.caption or PROMPT) for each in task.job.references]
    assert dataclasses.asdict(job) == dataclasses.asdict(dataclasses.replace(task.job, out=job.out, references=told))

    pipe, files = worker.pipeline(task.model), outputs.sample_files(task)[1]
    found = read_record(files.video.with_suffix(".json"))
    check_files(found, pipe)
    again = list(generate_samples(pipe, found.job, [found.batch], progress=False))[found.index]
    write_video("again.mp4", again.video, pipe.defaults.save_fps)
    assert Path("again.mp4").read_bytes() == files.video.read_bytes()


def test_warnings_stay_with_a_result_and_are_text(finished, tmp_path):
    _, _, task, _ = finished
    outputs.save_task(tmp_path, dataclasses.replace(task, warnings=["reference <b>.mp4 is unlike the clips"]))
    again = outputs.read_task(tmp_path)
    assert dataclasses.asdict(again.job) == dataclasses.asdict(task.job) and again.state is State.DONE
    assert "reference &lt;b&gt;.mp4 is unlike the clips" in page.result(again, None)


def test_references_are_chosen_by_their_action_with_the_reason_and_at_most_four(service, tmp_path):
    session = visitor(service)
    for _ in range(3):
        service.retrieve(session, 0, PROMPT, "your prompt")
    assert {slot.caption for slot in session.slots} == {CAPTIONS[0], CAPTIONS[1], CAPTIONS[3]}
    assert {slot.reason for slot in session.slots} == {"its caption shares 'hammer' with your prompt"}
    with pytest.raises(DataError, match=r"share an action \(hammer\)"):
        service.retrieve(session, 0, PROMPT, "your prompt")
    with pytest.raises(DataError, match="names no action"):
        service.retrieve(session, 0, "a red house", "your prompt")
    service.add_example(session, 0, 2)
    with pytest.raises(DataError, match="already"):
        service.add_example(session, 0, 2)
    place, name = uploads.reserve(session, "fifth.mp4")
    write_sample(place.with_suffix(".mp4"), 0).rename(place)
    with pytest.raises(DataError, match="at most 4 references"):
        uploads.accept_video(session, place, name)
    last = session.slots[-1]
    session.put_first(last.id)
    session.caption(last.id, " a boat ")
    assert service.sessions.of("0" * 22).slots[0] == dataclasses.replace(last, caption="a boat")


def test_uploads_that_are_no_short_clip_are_refused_with_the_visitor_s_name_and_leave_nothing(service, tmp_path):
    session = visitor(service)
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n"
    long = write_video(tmp_path / "long.mp4", torch.zeros(70, 16, 16, 3, dtype=torch.uint8), fps=1).read_bytes()
    still = write_video(tmp_path / "still.mp4", torch.zeros(1, 16, 16, 3, dtype=torch.uint8), fps=1).read_bytes()
    wide = write_video(tmp_path / "wide.gif", torch.zeros(2, 2, 5000, 3, dtype=torch.uint8), fps=1).read_bytes()
    whole = write_sample(tmp_path / "whole.mp4", 0).read_bytes()
    for content, sentence in (
        (b"", "it.mp4 is not a video"),
        (playlist, "it.mp4 is not a video"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "it.mp4 is not a video"),
        (b"\0\0\0\x18ftypisom" + b"\0" * 99, "it.mp4: not a readable video"),
        (whole[: len(whole) // 2], "it.mp4: "),
        (long, "it.mp4 lasts 70 seconds"),
        (still, "it.mp4: a single frame shows no action"),
        (wide, "it.mp4 is 5000x2 pixels large"),
    ):
        place, name = uploads.reserve(session, "it.mp4")
        place.write_bytes(content)
        with pytest.raises(UserError, match=sentence) as error:
            uploads.accept_video(session, place, name)
        assert str(tmp_path) not in str(error.value)
    assert session.slots == [] and list(session.uploads.iterdir()) == []
    for _ in range(uploads.MAX_FILES):
        uploads.reserve(session, "")[0].touch()
    with pytest.raises(DataError, match="all that is kept"):
        uploads.reserve(session, "")


def test_an_image_to_video_model_asks_for_its_image(service, tmp_path):
    session, name = visitor(service), service.cards[1].name
    assert [card.takes_image for card in service.cards] == [False, True]
    with pytest.raises(ConfigError, match="begins with an image"):
        service.submit(session, name, PROMPT, Settings())
    place, shown = uploads.reserve(session, "frame.png")
    Image.new("RGB", (40, 30), "red").save(place, format="PNG")
    uploads.accept_image(session, place, shown)
    task = service.submit(session, name, PROMPT, Settings())
    assert Path(task.job.image).is_file() and task.job.references == []
    [files] = outputs.sample_files(task)
    for path in (files.video, files.base):
        path.touch()
    shown = page.result(dataclasses.replace(task, state=State.DONE), service.cards[1])
    assert "from prompt and image alone" in shown and "from the prompt alone" not in shown
    place, shown = uploads.reserve(session, "frame.png")
    place.write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"frame.png is not an image \(PNG, JPEG or WebP\)"):
        uploads.accept_image(session, place, shown)


def test_an_image_may_be_the_first_frame_of_an_example(models, tmp_path):
    cards = list_models(models)[0]
    service = Service(cards, tmp_path / "web", [lambda task: None], example_clips(cards[0].name))
    session, gallery = visitor(service), service.gallery(1)
    html = page.image(None, service.libraries[1], gallery, 1)
    assert all(f'<option value="{number}">{caption}</option>' in html for number, caption in enumerate(CAPTIONS))
    service.take_frame(session, 1, 2)
    image, name = session.image
    clip = service.libraries[1].paths[2]
    assert name == CAPTIONS[2] and torch.equal(read_image(image), read_frames(clip, [0])[0])
    assert service.submit(session, cards[1].name, PROMPT, Settings()).job.image == str(image)
    with pytest.raises(DataError, match="no such example"):
        service.take_frame(session, 1, 99)
    service.libraries[1] = None
    assert "<select" in html and "<select" not in page.image(None, None, [], 1)
    with pytest.raises(DataError, match="upload your own"):
        service.take_frame(session, 1, 2)


def test_settings_beyond_the_limits_get_a_sentence(service):
    session, model = visitor(service), service.cards[0].name
    for settings, sentence in (
        (Settings(num_inference_steps=101), "the number of steps is 101: it must be from 1 to 100"),
        (Settings(num_samples=5), "the number of seeds is 5"),
        (Settings(seed=-1), "seed is -1"),
        (Settings(guidance_scale=float("nan")), "must be finite"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            service.submit(session, model, PROMPT, settings)
    for prompt, sentence in (("", "prompt is empty"), (None, "prompt is empty"), ("x" * 501, "501 characters")):
        with pytest.raises(ConfigError, match=sentence):
            service.submit(session, model, prompt, Settings())
    with pytest.raises(ConfigError, match="not served here"):
        service.submit(session, "/etc", PROMPT, Settings())
    assert service.queue.active() == [] and not session.results.exists()


def test_old_sessions_go_and_busy_ones_stay(tmp_path):
    for number, name in enumerate(("old", "busy", "large", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * (900 if name == "large" else 10))
        age = time.time() - (4 - number) * 1000
        for path in (tmp_path / name / "file", tmp_path / name):
            os.utime(path, (age, age))
    assert outputs.clean(tmp_path, 3500, 10**6, busy=["busy"]) == ["old"]
    assert outputs.clean(tmp_path, 3500, 100, busy=["busy"]) == ["large"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["busy", "new"]


def test_a_file_that_is_renamed_meanwhile_does_not_end_the_cleaning(tmp_path, monkeypatch):
    (tmp_path / "session" / "results").mkdir(parents=True)
    (tmp_path / "session" / "kept").write_bytes(b"x" * 10)
    found = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [*found(self, pattern), self / ".tmp-video.mp4"])
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: [*found(self, "**/*"), self / ".tmp-video.mp4"])
    assert outputs.clean(tmp_path, 3500, 10**6, busy=[]) == []
    assert outputs.clean(tmp_path, 3500, 5, busy=[]) == ["session"]


def test_a_folder_without_models_and_one_with_a_damaged_one(models, tmp_path):
    with pytest.raises(CheckpointError, match="holds no model"):
        list_models(tmp_path)
    (tmp_path / "good").symlink_to(models / "a_small")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.yaml").write_text("family: none\n")
    cards, [problem] = list_models(tmp_path)
    assert [card.name for card in cards] == [str(tmp_path / "good")] and "bad/config.yaml" in problem


def test_the_template_writes_prompts_that_the_puppet_world_reads(models):
    [card, *_] = list_models(models)[0]
    template = PROMPT_TEMPLATES[card.template]
    for name, choices in template.gaps.items():
        for choice in choices:
            text = template.fill({**template.start, name: choice})
            parse_caption(text)
            assert " a orange" not in text and "  " not in text
    assert card.unknown_words("a person is hammering the walls") == ["hammering", "walls"]
    with pytest.raises(ConfigError, match="'pink' is no choice for the shirt"):
        template.fill({**template.start, "shirt": "pink"})
