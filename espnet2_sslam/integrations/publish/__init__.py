"""A trained model as a folder for others: weights, card, hashes; and its upload.

records (what the recipe noted) -> source, lineage, evaluation (facts about the model)
-> card, metadata (README.md) -> folder -> upload.
"""

from espnet2_sslam.integrations.publish.folder import read_folder, write_folder
from espnet2_sslam.integrations.publish.upload import push

__all__ = ["push", "read_folder", "write_folder"]
