"""Networks that make images: latent vector to image. They know nothing of teachers, students or samplers."""

from .dcgan import Dcgan
from .noisy_layer import LabelGenerator, NoisyLayer
from .trunk import Trunk

__all__ = ["Dcgan", "LabelGenerator", "NoisyLayer", "Trunk"]
