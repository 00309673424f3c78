"""A procedural world, ray-cast and written in nuScenes' own format."""
