"""Networks: latent vector to image, and what judges or remembers images. They know no teacher and no sampler."""

from .dcgan import Dcgan
from .noisy_layer import LabelGenerator, NoisyLayer
from .patch_critic import PatchCritic
from .sn_gan import SNCritic, SNGenerator
from .trunk import Trunk
from .vae import VAE

__all__ = ["VAE", "Dcgan", "LabelGenerator", "NoisyLayer", "PatchCritic", "SNCritic", "SNGenerator", "Trunk"]
