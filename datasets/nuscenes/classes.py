"""nuScenes' names: classes, attributes, map layers. Orders are part of published models.

Source: nuscenes-devkit 1.2.0 ``eval/detection/utils.py``; order of the classes as in MIT BEVFusion.
"""

from __future__ import annotations

DETECTION_CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)

# The classes of the tracking task; the labels of tracked boxes are indices into DETECTION_CLASSES.
TRACKING_CLASSES = ("bicycle", "bus", "car", "motorcycle", "pedestrian", "trailer", "truck")

ATTRIBUTES = (
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.standing",
    "pedestrian.sitting_lying_down",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)

MAP_CLASSES = (
    "drivable_area",
    "ped_crossing",
    "walkway",
    "stop_line",
    "carpark_area",
    "divider",
)

CLASS_OF_CATEGORY = {
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}


def attributes_of(detection_class: str) -> tuple[str, ...]:
    """The attributes that a box of this class may carry; none for cones and barriers."""
    if detection_class in ("bicycle", "motorcycle"):
        prefix = "cycle."
    elif detection_class == "pedestrian":
        prefix = "pedestrian."
    elif detection_class in ("barrier", "traffic_cone"):
        return ()
    else:
        prefix = "vehicle."
    return tuple(name for name in ATTRIBUTES if name.startswith(prefix))


def label_of_category(category: str) -> int:
    """Index into ``DETECTION_CLASSES``, or -1 for a category outside it."""
    name = CLASS_OF_CATEGORY.get(category)
    return DETECTION_CLASSES.index(name) if name else -1


# Occ3D-nuScenes: 0 others, 1..16 as in the lidarseg challenge; index 17, free, is no class here.
OCCUPANCY_CLASSES = (
    "others",
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
)
FREE = len(OCCUPANCY_CLASSES)

_OCCUPANCY_PREFIX = {
    "flat.driveable_surface": "driveable_surface",
    "flat.other": "other_flat",
    "flat.sidewalk": "sidewalk",
    "flat.terrain": "terrain",
    "static.manmade": "manmade",
    "static.vegetation": "vegetation",
}


def occupancy_class(category: str) -> int:
    """Index into ``OCCUPANCY_CLASSES`` of a lidarseg or annotation category; 0 for the others."""
    name = CLASS_OF_CATEGORY.get(category) or _OCCUPANCY_PREFIX.get(category)
    return OCCUPANCY_CLASSES.index(name) if name else 0
