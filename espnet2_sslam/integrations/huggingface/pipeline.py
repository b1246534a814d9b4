"""Audio files in the audio-classification pipeline, without ffmpeg."""

import io
from pathlib import Path
from typing import Any

from transformers import AudioClassificationPipeline

from espnet2_sslam.audio import read_audio
from espnet2_sslam.integrations.huggingface.model import SSLAMForAudioClassification


class AudioFilePipeline(AudioClassificationPipeline):
    """The pipeline of transformers; for our models it reads files itself.

    transformers gives files and bytes to the program ffmpeg, which is often missing.
    Our models get them through soundfile (wav, flac, mp3, ogg, ...) as everywhere in
    this package: any rate, channels averaged, damaged files refused. For all other
    models nothing changes.
    """

    def check_model_type(self, supported_models) -> None:
        """Ours is supported, though transformers' own list does not name it."""
        if not isinstance(self.model, SSLAMForAudioClassification):
            super().check_model_type(supported_models)

    def preprocess(self, inputs: Any):
        """Read files and bytes, then go on as ever."""
        if isinstance(self.model, SSLAMForAudioClassification):
            if isinstance(inputs, (bytes, bytearray)):
                inputs = read_audio(io.BytesIO(inputs))
            elif isinstance(inputs, (str, Path)) and not _is_url(str(inputs)):
                inputs = read_audio(inputs)
        return super().preprocess(inputs)


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))
