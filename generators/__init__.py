"""Networks: latent vector to image, and what judges or remembers images. They know no teacher and no sampler."""

from .dcgan import Dcgan
from .noisy_layer import LabelGenerator, NoisyLayer
from .patch_critic import PatchCritic
from .trunk import Trunk
from .vae import VAE

__all__ = ["VAE", "Dcgan", "LabelGenerator", "NoisyLayer", "PatchCritic", "Trunk"]
