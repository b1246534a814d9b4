"""transformers' common tests on our classes, to be run inside its source archive.

`test_hosts_transformers` copies this file there.
"""

import unittest

import numpy as np
import torch
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.testing_utils import torch_device

from espnet2_sslam.integrations.huggingface import (
    SSLAMConfig,
    SSLAMFeatureExtractor,
    SSLAMForAudioClassification,
    SSLAMModel,
)

from .test_configuration_common import ConfigTester
from .test_modeling_common import ModelTesterMixin
from .test_sequence_feature_extraction_common import SequenceFeatureExtractionTestMixin

MODEL_MAPPING_NAMES["sslam"] = "SSLAMModel"  # the tests ask here which one has no loss
SIZES = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0}
CLIPS, SAMPLES, STEPS = 3, 16_000, 7


class ModelTester:
    """What the common tests ask of a model's sizes and inputs."""

    batch_size, is_training = CLIPS, True
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4
    seq_length = 1 + 8 * STEPS  # tokens

    def get_config(self):
        return SSLAMConfig(encoder={**SIZES, "max_frames": 128}, num_labels=3)

    def prepare_config_and_inputs_for_common(self):
        generator = torch.Generator().manual_seed(0)
        waves = 0.1 * torch.randn(CLIPS, SAMPLES, generator=generator)
        mask = torch.ones(CLIPS, SAMPLES, dtype=torch.long)
        inputs = {"input_values": waves, "attention_mask": mask}
        return self.get_config(), {k: v.to(torch_device) for k, v in inputs.items()}


class SSLAMModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (SSLAMModel, SSLAMForAudioClassification)
    test_resize_embeddings = False  # no words
    has_attentions = False  # refused in one line, see the docs of both models

    def setUp(self):
        self.model_tester = ModelTester()
        self.config_tester = ConfigTester(
            self, config_class=SSLAMConfig, has_text_modality=False, encoder=None
        )

    def test_config(self):
        self.config_tester.inputs_dict = {"encoder": self.encoder()}
        self.config_tester.run_common_tests()

    def encoder(self):
        return self.model_tester.get_config().encoder

    def test_model_get_set_embeddings(self):
        """Audio has no nn.Embedding, which the common test asks for."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            assert model.get_input_embeddings() is model.encoder.patch_embed.proj
            model.set_input_embeddings(torch.nn.Linear(10, 10))
            assert isinstance(model.get_input_embeddings(), torch.nn.Linear)
            assert model.get_output_embeddings() is None


class FeatureExtractorTester:
    """What the common tests ask of the clips."""

    batch_size, feature_size, padding_value = 5, 1, 0.0
    min_seq_length, max_seq_length, seq_length_diff = 400, 2000, 400

    def prepare_feat_extract_dict(self):
        return {"feature_size": 1, "sampling_rate": 16_000, "padding_value": 0.0}

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        low, high, step = 400, 2000, 400
        lengths = [high] * 5 if equal_length else range(low, high + 1, step)
        generator = np.random.default_rng(0)
        clips = [generator.uniform(-1, 1, n).astype(np.float32) for n in lengths]
        return clips if numpify else [clip.tolist() for clip in clips]


class SSLAMFeatureExtractorTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = SSLAMFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = FeatureExtractorTester()
