"""Files <-> pixels <-> frames: the only home of pixel ranges, resizing, frame sampling and frame rates."""

from lvdm.video.images import IMAGE_ENDINGS, VIDEO_ENDINGS, frame_files, read_animation, read_image, to_rgb
from lvdm.video.montage import contact_sheet, enlarged, side_by_side, text_strip
from lvdm.video.outputs import OutputType, check_output_type, convert_pixels
from lvdm.video.pixels import ShortRule, as_tensor, frame_indices, frame_step, resize_crop, to_frames, to_pixels
from lvdm.video.reading import (
    Video,
    VideoInfo,
    check_video,
    damage,
    load_clip,
    load_pixels,
    open_video,
    probe,
    read_frames,
)
from lvdm.video.writing import OUTPUT_ENDINGS, write_video

__all__ = [
    "IMAGE_ENDINGS",
    "OUTPUT_ENDINGS",
    "VIDEO_ENDINGS",
    "OutputType",
    "ShortRule",
    "Video",
    "VideoInfo",
    "as_tensor",
    "check_output_type",
    "check_video",
    "contact_sheet",
    "convert_pixels",
    "damage",
    "enlarged",
    "frame_files",
    "frame_indices",
    "frame_step",
    "load_clip",
    "load_pixels",
    "open_video",
    "probe",
    "read_animation",
    "read_frames",
    "read_image",
    "resize_crop",
    "side_by_side",
    "text_strip",
    "to_frames",
    "to_pixels",
    "to_rgb",
    "write_video",
]
