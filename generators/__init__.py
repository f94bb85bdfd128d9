"""Networks that make images: latent vector to image. They know nothing of teachers, students or samplers."""

from .dcgan import Dcgan
from .trunk import Trunk

__all__ = ["Dcgan", "Trunk"]
