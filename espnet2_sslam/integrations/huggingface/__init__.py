"""Hugging Face transformers reads and writes our folders once this is imported.

`AutoConfig`, `AutoModel`, `AutoModelForAudioClassification`, `AutoFeatureExtractor` and
`pipeline("audio-classification")` know the model type "sslam" then, without
`trust_remote_code`.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
)
from transformers.pipelines import PIPELINE_REGISTRY

from espnet2_sslam.integrations.huggingface.config import SSLAMConfig
from espnet2_sslam.integrations.huggingface.extractor import SSLAMFeatureExtractor
from espnet2_sslam.integrations.huggingface.model import (
    SSLAMForAudioClassification,
    SSLAMModel,
)
from espnet2_sslam.integrations.huggingface.pipeline import AudioFilePipeline

__all__ = [
    "AudioFilePipeline",
    "SSLAMConfig",
    "SSLAMFeatureExtractor",
    "SSLAMForAudioClassification",
    "SSLAMModel",
]

AutoConfig.register(SSLAMConfig.model_type, SSLAMConfig, exist_ok=True)
AutoModel.register(SSLAMConfig, SSLAMModel, exist_ok=True)
AutoModelForAudioClassification.register(
    SSLAMConfig, SSLAMForAudioClassification, exist_ok=True
)
AutoFeatureExtractor.register(SSLAMConfig, SSLAMFeatureExtractor, exist_ok=True)
# Other models are treated as ever: see the class.
PIPELINE_REGISTRY.supported_tasks["audio-classification"]["impl"] = AudioFilePipeline
