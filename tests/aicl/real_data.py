"""Small made-up data sets in the published layouts of UCF-101 and WebVid, and tiny evaluators of real videos."""

import csv
import json
from pathlib import Path

import av
import torch
from torch import Tensor, nn

from lvdm.data import read_split
from lvdm.video import write_video

SPLIT = Path(__file__).resolve().parents[2] / "configs" / "data" / "ucf101_split.yaml"
UNSEEN = tuple(read_split(SPLIT))
GROUPS = {1: 2, 2: 1, 3: 1, 8: 2, 9: 1}  # of each class -> clips; 1 to 7 are for references
FPS, FRAMES, SIZE = 25, 34, (24, 32)


def moving_square(number: int, frames: int = FRAMES, size: tuple[int, int] = SIZE) -> Tensor:
    """uint8 (frames, h, w, 3): a square that moves at a speed, in a direction and in colours of its own."""
    generator = torch.Generator().manual_seed(number)
    colours = torch.randint(40, 216, (2, 3), generator=generator).to(torch.uint8)
    speed = 0.2 + 0.1 * (number % 7)
    pixels = colours[0].expand(frames, *size, 3).clone()
    for frame in range(frames):
        x, y = int(speed * frame) % (size[1] - 8), int(speed * frame * (number % 3)) % (size[0] - 8)
        pixels[frame, y : y + 8, x : x + 8] = colours[1]
    return pixels


def write_avi(path: Path, pixels: Tensor, fps: int = FPS) -> None:
    """As UCF-101 comes: MPEG-4 part 2 in an .avi."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=fps)
        stream.height, stream.width, stream.pix_fmt = pixels.shape[1], pixels.shape[2], "yuv420p"
        for image in pixels.numpy():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())


def make_ucf101(root: Path) -> Path:
    """The folders of the ten unseen classes, with clips named as published."""
    number = 0
    for label in UNSEEN:
        for group, clips in GROUPS.items():
            for clip in range(1, clips + 1):
                write_avi(root / label / f"v_{label}_g{group:02d}_c{clip:02d}.avi", moving_square(number))
                number += 1
    return root


CAPTIONS = [
    "Young woman dancing in the street",
    "Old man dancing alone at a party",
    "Two children dancing on the grass",
    "A couple dancing at a wedding",
    "Girl dancing near the sea",
    "Happy man dancing with his dog",
    "Woman laughing in a cafe",
    "Man laughing at the camera",
    "Girl laughing with friends",
    "Boy laughing in the garden",
    "Grandmother laughing at home",
    "Children laughing on a bus",
    "A dog sleeping on the sofa",
    "A cat sleeping in the sun",
    "Baby sleeping in a cradle",
    "Man sleeping on a train",
    "Woman sleeping in a tent",
    "Old man sleeping in a chair",
    "Man riding a bike in the city",  # its verb is in UCF-101's training
    "Woman playing the piano",
    "Clouds over the mountains",  # names no action
]


def make_webvid(root: Path) -> tuple[Path, Path]:
    """A CSV in WebVid's columns and its tree of videos; returns (CSV, folder)."""
    table, videos = root / "results.csv", root / "videos"
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["videoid", "contentUrl", "duration", "page_dir", "name"])
        writer.writeheader()
        for number, caption in enumerate(CAPTIONS):
            page = f"{number % 2:06d}_{number % 2 + 1:06d}"
            row = {"videoid": 1000 + number, "contentUrl": "", "duration": "PT00H00M02S", "page_dir": page}
            writer.writerow(row | {"name": caption})
            write_video(videos / page / f"{1000 + number}.mp4", moving_square(500 + number), fps=FPS)
    return table, videos


def make_folder(root: Path) -> Path:
    """A folder of somebody's videos, eight each of two labels, with the table that names their captions."""
    rows = [["file", "caption", "label"]]
    for number in range(16):
        label = UNSEEN[number % 2]
        write_video(root / f"{number:02d}.mp4", moving_square(700 + number), fps=FPS)
        rows.append([f"{number:02d}.mp4", f"a person is {('running', 'jumping')[number % 2]}", label])
    with open(root / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return root


class TinyI3D(nn.Module):
    """A TorchScript network with the arguments of the published one; 8 features, since 400 take long to compare."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 8)

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = True) -> Tensor:
        x = x / 127.5 - 1
        return self.project(torch.cat([x.mean([2, 3, 4]), x.std([2, 3, 4])], 1))


def save_tiny_real_evaluators(folder: Path) -> dict[str, str]:
    """i3d, clip, classifier and videomae with random weights; returns their paths."""
    import transformers

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    torch.jit.script(TinyI3D()).save(folder / "i3d_torchscript.pt")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    letters = [letter + ending for letter in "abcdefghijklmnopqrstuvwxyz-" for ending in ("", "</w>")]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    text = {"vocab_size": len(words), "max_position_embeddings": 77, "bos_token_id": len(words) - 2}
    config = transformers.CLIPConfig(
        text_config=sizes | text | {"eos_token_id": len(words) - 1},
        vision_config=sizes | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder / "clip")
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), unk_token="<|endoftext|>"
    ).save_pretrained(folder / "clip")
    labels = dict(enumerate(sorted(UNSEEN)))
    video = {"image_size": 32, "patch_size": 16, "num_frames": 4, **sizes}
    named = transformers.VideoMAEConfig(**video, id2label=labels, label2id={name: n for n, name in labels.items()})
    transformers.VideoMAEForVideoClassification(named).save_pretrained(folder / "classifier")
    transformers.VideoMAEImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder / "classifier")
    transformers.VideoMAEModel(transformers.VideoMAEConfig(**video)).save_pretrained(folder / "videomae")
    names = {"i3d": "i3d_torchscript.pt", "clip": "clip", "classifier": "classifier", "videomae": "videomae"}
    return {role: str(folder / name) for role, name in names.items()}
