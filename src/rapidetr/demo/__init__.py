"""The rendered little world: everyday things, drawn with numpy and Pillow, with exact boxes and masks."""

from rapidetr.demo.dataset import scene_seed, write_dataset
from rapidetr.demo.world import VARIATION, WORLD, Scene, Variation, render_scene

__all__ = ["VARIATION", "WORLD", "Scene", "Variation", "render_scene", "scene_seed", "write_dataset"]
