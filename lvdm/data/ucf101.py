"""UCF-101 as published: a folder for each of its 101 classes, full of .avi files. Captions come from the class name."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lvdm.config import from_mapping, load
from lvdm.data.clips import ClipRecord
from lvdm.errors import ConfigError, DataError
from lvdm.video import VIDEO_ENDINGS

Part = Literal["all", "seen", "unseen"]

# What follows "A person is", class by class; the classes in SUBJECTS do not show "a person".
ACTIONS = {
    "ApplyEyeMakeup": "applying eye makeup",
    "ApplyLipstick": "applying lipstick",
    "Archery": "shooting an arrow with a bow",
    "BabyCrawling": "crawling",
    "BalanceBeam": "doing gymnastics on a balance beam",
    "BandMarching": "marching",
    "BaseballPitch": "pitching a baseball",
    "Basketball": "shooting a basketball",
    "BasketballDunk": "dunking a basketball",
    "BenchPress": "doing a bench press",
    "Biking": "riding a bike",
    "Billiards": "playing billiards",
    "BlowDryHair": "blow-drying hair",
    "BlowingCandles": "blowing out candles",
    "BodyWeightSquats": "doing squats",
    "Bowling": "bowling",
    "BoxingPunchingBag": "boxing a punching bag",
    "BoxingSpeedBag": "boxing a speed bag",
    "BreastStroke": "swimming breaststroke",
    "BrushingTeeth": "brushing teeth",
    "CleanAndJerk": "lifting a barbell in a clean and jerk",
    "CliffDiving": "diving from a cliff",
    "CricketBowling": "bowling a cricket ball",
    "CricketShot": "batting a cricket ball",
    "CuttingInKitchen": "cutting food in a kitchen",
    "Diving": "diving into a pool",
    "Drumming": "playing the drums",
    "Fencing": "fencing",
    "FieldHockeyPenalty": "shooting a field hockey penalty",
    "FloorGymnastics": "doing floor gymnastics",
    "FrisbeeCatch": "catching a frisbee",
    "FrontCrawl": "swimming front crawl",
    "GolfSwing": "swinging a golf club",
    "Haircut": "cutting hair",
    "HammerThrow": "throwing a hammer in athletics",
    "Hammering": "hammering a nail",
    "HandstandPushups": "doing handstand push-ups",
    "HandstandWalking": "walking on hands",
    "HeadMassage": "massaging a head",
    "HighJump": "doing a high jump",
    "HorseRace": "racing horses",
    "HorseRiding": "riding a horse",
    "HulaHoop": "spinning a hula hoop",
    "IceDancing": "dancing on ice",
    "JavelinThrow": "throwing a javelin",
    "JugglingBalls": "juggling balls",
    "JumpRope": "jumping rope",
    "JumpingJack": "doing jumping jacks",
    "Kayaking": "kayaking",
    "Knitting": "knitting",
    "LongJump": "doing a long jump",
    "Lunges": "doing lunges",
    "MilitaryParade": "marching in a parade",
    "Mixing": "mixing batter in a bowl",
    "MoppingFloor": "mopping the floor",
    "Nunchucks": "swinging nunchucks",
    "ParallelBars": "doing gymnastics on parallel bars",
    "PizzaTossing": "tossing pizza dough",
    "PlayingCello": "playing cello",
    "PlayingDaf": "playing daf",
    "PlayingDhol": "playing dhol",
    "PlayingFlute": "playing flute",
    "PlayingGuitar": "playing guitar",
    "PlayingPiano": "playing piano",
    "PlayingSitar": "playing sitar",
    "PlayingTabla": "playing tabla",
    "PlayingViolin": "playing violin",
    "PoleVault": "doing a pole vault",
    "PommelHorse": "doing gymnastics on a pommel horse",
    "PullUps": "doing pull-ups",
    "Punch": "punching an opponent",
    "PushUps": "doing push-ups",
    "Rafting": "rafting on white water",
    "RockClimbingIndoor": "climbing an indoor rock wall",
    "RopeClimbing": "climbing a rope",
    "Rowing": "rowing a boat",
    "SalsaSpin": "spinning in a salsa dance",
    "ShavingBeard": "shaving a beard",
    "Shotput": "putting a shot",
    "SkateBoarding": "skateboarding",
    "Skiing": "skiing",
    "Skijet": "riding a jet ski",
    "SkyDiving": "skydiving",
    "SoccerJuggling": "juggling a soccer ball",
    "SoccerPenalty": "shooting a soccer penalty",
    "StillRings": "doing gymnastics on still rings",
    "SumoWrestling": "wrestling sumo",
    "Surfing": "surfing",
    "Swing": "swinging on a swing",
    "TableTennisShot": "playing table tennis",
    "TaiChi": "practising tai chi",
    "TennisSwing": "swinging a tennis racket",
    "ThrowDiscus": "throwing a discus",
    "TrampolineJumping": "jumping on a trampoline",
    "Typing": "typing on a keyboard",
    "UnevenBars": "doing gymnastics on uneven bars",
    "VolleyballSpiking": "spiking a volleyball",
    "WalkingWithDog": "walking a dog",
    "WallPushups": "doing push-ups against a wall",
    "WritingOnBoard": "writing on a board",
    "YoYo": "playing with a yo-yo",
}
SUBJECTS = {"BabyCrawling": "A baby is", "BandMarching": "A band is", "MilitaryParade": "A troop is"}


@dataclass(frozen=True)
class _Split:
    unseen: list[str]


def caption(label: str) -> str:
    """The caption of a class: PlayingGuitar -> "A person is playing guitar". Raises DataError for another name."""
    if label not in ACTIONS:
        raise DataError(f"'{label}' is not one of the 101 classes of UCF-101")
    return f"{SUBJECTS.get(label, 'A person is')} {ACTIONS[label]}"


def read_split(path: str | os.PathLike[str]) -> list[str]:
    """The unseen classes that a split file lists (`configs/data/ucf101_split.yaml`); the others are seen."""
    unseen = from_mapping(_Split, load(path), str(path)).unseen
    unknown = sorted(set(unseen) - ACTIONS.keys())
    if unknown or len(set(unseen)) != len(unseen):
        raise ConfigError(f"{path}: {unknown[0] if unknown else 'a class'} is unknown or listed twice in 'unseen'")
    return unseen


def read_ucf101(root: str | os.PathLike[str], part: Part = "all", unseen: Collection[str] = ()) -> list[ClipRecord]:
    """The videos below `root`, sorted, of the `unseen` classes, of the others ("seen"), or all.

    `root` is the folder that holds the class folders. Raises DataError if a wanted class has no videos or a folder is
    not a class of UCF-101.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: is not a folder; give the folder that holds UCF-101's class folders")
    wanted = [label for label in ACTIONS if part == "all" or (label in unseen) == (part == "unseen")]
    folders = {folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith(".")}
    if folders - ACTIONS.keys():
        raise DataError(f"{root}: '{min(folders - ACTIONS.keys())}' is not a class of UCF-101; move that folder away")
    if set(wanted) - folders:
        raise DataError(
            f"{root}: the class folder '{min(set(wanted) - folders)}' is missing; unpack the whole data set"
        )
    records = []
    for label in wanted:
        files = [file for file in (root / label).iterdir() if file.suffix.lower() in VIDEO_ENDINGS]
        files = sorted(file for file in files if not file.name.startswith(".") and file.is_file())
        if not files:
            raise DataError(f"{root / label}: holds no videos; unpack the whole data set")
        records += [ClipRecord(file, caption(label), label, file.relative_to(root).as_posix()) for file in files]
    return records
