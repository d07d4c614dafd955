"""Paints the sample data set in dataset/sample: small still lifes with five classes, in the layout of PASCAL VOC 2012.

    python tools/make_sample.py [--out_dir=FOLDER] [--seed=SEED]

Every picture is painted in float RGB at three times its size and then averaged down. Objects are painted from far to
near. Each has its own coordinates, u to the right and v downwards, and fills about [-1, 1] x [-1, 1].
"""

import os
import shutil
import sys
import tempfile

import numpy as np
from absl import flags
from PIL import Image
from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from utils.data import data_lists, palette  # noqa: E402
from utils.system import command_line  # noqa: E402
from utils.system.errors import UserError  # noqa: E402

FLAGS = flags.FLAGS

CLASSES = ('background', 'orange', 'plant', 'fish', 'brick', 'mug')
BORDER = palette.IGNORE_LABEL
NUM_TRAIN, NUM_VAL = 60, 20
SIZES = ((160, 120), (160, 120), (152, 120), (160, 112), (120, 160))  # width, height
SUPERSAMPLING = 3
BACKGROUND_SHARE = (0.38, 0.58)


# ---- paint and light ----

def value_noise(rng, x, y):
    """Returns smooth noise in [-1, 1] at x and y, two arrays with equal shapes, with about one bump per unit."""
    table = rng.uniform(-1, 1, (64, 64))
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = x - x0, y - y0
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    left, right, top, bottom = x0 % 64, (x0 + 1) % 64, y0 % 64, (y0 + 1) % 64
    above = table[top, left] * (1 - fx) + table[top, right] * fx
    below = table[bottom, left] * (1 - fx) + table[bottom, right] * fx
    return above * (1 - fy) + below * fy


def smooth_step(low, high, x):
    """Returns 0 where x is below low, 1 where it is above high, and a smooth cubic transition between them."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def jitter(rng, colour, amount=0.05):
    """Returns an RGB colour in [0, 1] with small random changes of channels and brightness."""
    return np.clip(np.asarray(colour) * (1 + rng.uniform(-amount, amount))
                   + rng.uniform(-amount, amount, 3) / 2, 0, 1)


def blend(first, second, weight):
    """Mixes two colours or colour images with weights [h, w]; returns [h, w, 3]."""
    return first + (second - first) * weight[..., None]


def dot(first, second):
    """Returns the dot product of two vectors whose components are numbers or arrays."""
    return sum(a * b for a, b in zip(first, second))


def diffuse(normal, light, ambient=0.5):
    """Returns the brightness [h, w] by Lambert's law with ambient light; normal is a tuple of three arrays [h, w]."""
    return ambient + (1.15 - ambient) * np.maximum(dot(normal, light), 0)


def highlight(normal, light, sharpness):
    """Returns the Phong highlight, [h, w] in [0, 1], for a viewer along z."""
    facing = dot(normal, light)
    return np.maximum(2 * facing * normal[2] - light[2], 0) ** sharpness


# ---- objects: (u, v, light, rng) -> mask [h, w], colour [h, w, 3] ----

def paint_orange(u, v, light, rng, skin=(0.99, 0.53, 0.04)):
    """Paints a ball with pores, a soft highlight and a navel."""
    inside = u * u + v * v
    normal = (u, v, np.sqrt(np.maximum(1 - inside, 0)))
    pores = value_noise(rng, u * 17, v * 17) * 0.07 + value_noise(rng, u * 4, v * 4) * 0.05
    colour = jitter(rng, skin, 0.04) * (diffuse(normal, light) + pores)[..., None]
    navel_u, navel_v = rng.uniform(-0.45, 0.45), rng.uniform(-0.6, -0.2)
    navel = np.exp(-((u - navel_u) ** 2 + (v - navel_v) ** 2) / 0.009)
    colour = blend(colour, colour * 0.6, navel)
    return inside < 1, blend(colour, np.array([1, 0.9, 0.7]), 0.65 * highlight(normal, light, 18))


def leaf(u, v, angle, length, width):
    """Returns a leaf that starts at the origin: mask, position across in [-1, 1], position along in [0, 1]."""
    along = (u * np.cos(angle) + v * np.sin(angle)) / length
    across = (-u * np.sin(angle) + v * np.cos(angle)) / width
    outline = np.sqrt(np.maximum(along * (1 - along), 0)) * 2 * (1.15 - 0.4 * along)
    return np.abs(across) < outline, across, along


def paint_plant(u, v, light, rng, green=(0.27, 0.62, 0.16)):
    """Paints a bush of overlapping leaves, dark inside and bright outside, with or without a glazed green pot."""
    potted = rng.uniform() < 0.6
    centre_v = -0.22 if potted else 0.08
    colour = np.ones(u.shape + (3,)) * [0.06, 0.20, 0.05]
    mask = u * u + (v - centre_v) ** 2 < 0.5
    if potted:
        half = 0.52 - 0.2 * (v - 0.4)
        pot = (np.abs(u) < half) & (v > 0.3) & (v < 0.88 + 0.1 * np.sqrt(np.maximum(1 - (u / 0.45) ** 2, 0)))
        across = np.clip(u / half, -1, 1)
        normal = (across, 0 * u, np.sqrt(1 - across * across))
        glaze = np.array([0.16, 0.40, 0.22]) * (diffuse(normal, light) + 0.1 * np.sin(v * 40))[..., None]
        glaze = blend(glaze, np.array([0.8, 1, 0.8]), 0.4 * highlight(normal, light, 20))
        colour, mask = np.where(pot[..., None], glaze, colour), mask | pot
    green = jitter(rng, green, 0.08)
    rings = ((0.33, 11, 0.62), (0.2, 9, 0.8), (0.06, 7, 1.0))  # distance from the centre, leaves, brightness
    for distance, count, brightness in rings:
        for k in rng.permutation(count):
            angle = 2 * np.pi * (k + rng.uniform(-0.3, 0.3)) / count
            du, dv = distance * np.cos(angle), distance * np.sin(angle)
            blade, across, along = leaf(u - du, v - centre_v - dv, angle, rng.uniform(0.52, 0.66), 0.21)
            fold = 1 + 0.22 * np.sign(across) * np.sign(light[0] * np.sin(angle) - light[1] * np.cos(angle))
            facing = 1 + 0.3 * (light[0] * np.cos(angle) + light[1] * np.sin(angle))
            paint = jitter(rng, green, 0.1) * (brightness * fold * facing * (0.72 + 0.4 * along))[..., None]
            rib = np.exp(-(across / 0.13) ** 2)
            paint = blend(paint, paint * 1.2 + [0.05, 0.09, 0.02], rib)
            edge = smooth_step(0.0, 0.35, 1.05 - np.abs(across))
            colour = np.where(blade[..., None], paint * (0.75 + 0.25 * edge)[..., None], colour)
            mask = mask | blade
    return mask, colour


def paint_fish(u, v, light, rng, pink=(0.93, 0.30, 0.60), purple=(0.42, 0.10, 0.47)):
    """Paints a striped fish with scales, fins and an eye, which faces left or right."""
    tilt = rng.uniform(-0.25, 0.25)
    side = rng.choice([-1, 1])
    u, v = side * (u * np.cos(tilt) + v * np.sin(tilt)), v * np.cos(tilt) - u * np.sin(tilt)
    along, across = (u + 0.22) / 0.78, v / 0.56
    body = along ** 2 + across ** 2 < 1
    tail = (u > 0.3) & (u < 0.98 - 0.12 * np.cos(v * 5)) & (np.abs(v) < 0.2 + 0.62 * (u - 0.38))
    fin = (np.abs(u + 0.15 + 0.25 * (v + 0.5)) < 0.42) & (v < 0) & (v > -0.74 + 0.35 * (u + 0.3) ** 2)
    bulge = np.sqrt(np.maximum(1 - (0.8 * along) ** 2 - (0.9 * across) ** 2, 0))
    normal = (side * along * 0.8, across * 0.9, bulge)
    pink, purple = jitter(rng, pink), jitter(rng, purple)
    stripes = smooth_step(-0.25, 0.25, np.sin(u * 13 + 1.6 * across ** 2 + rng.uniform(0, 6)))
    scales = 0.09 * np.sin(u * 34 + v * 34) * np.sin(u * 34 - v * 34)
    flank = blend(pink, purple, stripes) * (diffuse(normal, light, 0.55) + scales)[..., None]
    flank = blend(flank, np.array([1, 0.85, 0.95]), 0.5 * highlight(normal, light, 14))
    rays = 0.85 + 0.18 * np.sin(np.arctan2(v, u - 0.1) * 40)
    fins = blend(pink, purple, 0.45 + 0.25 * np.sin(v * 9 + u * 12)) * rays[..., None]
    colour = np.where(body[..., None], flank, fins)
    eye = (u + 0.66) ** 2 + (v + 0.1) ** 2
    colour = np.where((eye < 0.0100)[..., None], np.array([0.98, 0.93, 0.9]), colour)
    colour = np.where((eye < 0.0036)[..., None], np.array([0.08, 0.03, 0.1]), colour)
    return body | tail | fin, colour


def masonry(a, b, rng, clay, mortar):
    """Returns an image of bricks, [h, w, 3], at positions a along a wall and b up the wall, in brick lengths."""
    row = np.floor(b * 2.2)
    x = a + 0.5 * (row % 2)
    column = np.floor(x)
    tint = rng.uniform(0.82, 1.15, (32, 32))[row.astype(int) % 32, column.astype(int) % 32]
    across, up = x - column, b * 2.2 - row
    gap = np.minimum(np.minimum(across, 1 - across), np.minimum(up, 1 - up) / 2.2)
    grain = 1 + 0.13 * value_noise(rng, a * 9, b * 9) + 0.08 * value_noise(rng, a * 23, b * 23)
    return blend(mortar * np.ones(3), clay * (tint * grain)[..., None], smooth_step(0.02, 0.06, gap))


def paint_brick(u, v, light, rng, clay=(0.70, 0.20, 0.13), mortar=(0.66, 0.42, 0.36)):
    """Paints a block of masonry, seen from above a corner: two walls and the top."""
    clay, mortar = jitter(rng, clay), np.asarray(mortar)
    corner, height = rng.uniform(-0.3, 0.3), rng.uniform(0.95, 1.2)
    edge_left, edge_right = (-0.96 - corner, -0.30), (0.96 - corner, -0.30)
    mask, colour = np.zeros(u.shape, bool), np.zeros(u.shape + (3,))
    for (du, dv), facing in ((edge_left, -1), (edge_right, 1)):
        a = (u - corner) / du
        b = (0.92 + a * dv - v) / height
        wall = (a >= 0) & (a < 1) & (b >= 0) & (b < 1)
        brightness = 0.78 + 0.42 * max(facing * light[0], 0)
        paint = masonry(a * abs(du) * 2.1 + 8, b * height * 2.1, rng, clay, mortar) * brightness
        paint *= (0.82 + 0.18 * smooth_step(0, 0.25, b))[..., None]
        mask, colour = mask | wall, np.where(wall[..., None], paint, colour)
    top_v = 0.92 - height
    (lu, lv), (ru, rv) = edge_left, edge_right
    determinant = lu * rv - lv * ru
    a = ((u - corner) * rv - (v - top_v) * ru) / determinant
    b = ((v - top_v) * lu - (u - corner) * lv) / determinant
    top = (a >= 0) & (a < 1) & (b >= 0) & (b < 1)
    paint = masonry(a * 2 + 8, b * 2 + 8, rng, clay, mortar) * 1.25
    return mask | top, np.where(top[..., None], paint, colour)


def paint_mug(u, v, light, rng, glaze=(0.13, 0.33, 0.80)):
    """Paints a glazed mug with paler bands, a thick handle and an open top."""
    side, radius, top, rim = rng.choice([-1, 1]), 0.66, -0.66, 0.22
    u = u + side * 0.26
    across = np.clip(u / radius, -1, 1)
    bulge = np.sqrt(1 - across * across)
    body = (np.abs(u) < radius) & (v > top) & (v < 0.74 + rim * bulge)
    lip = across ** 2 + ((v - top) / rim) ** 2
    ring = np.sqrt((u - side * radius) ** 2 + (v / 1.05 - 0.08) ** 2)
    handle = (ring < 0.54) & (ring > 0.26) & (side * u > radius - 0.05)
    glaze = jitter(rng, glaze, 0.08)
    normal = (across, 0 * u, bulge)
    level = v - rim * bulge
    bands = smooth_step(0.3, 0.6, np.sin(level * rng.uniform(7, 12) + rng.uniform(0, 6)))
    paint = blend(glaze * np.ones(3), glaze * 0.55 + [0.16, 0.25, 0.36], bands)
    paint = paint * (diffuse(normal, light, 0.45) + 0.05 * value_noise(rng, u * 12, v * 12))[..., None]
    paint = blend(paint, np.array([0.85, 0.93, 1]), 0.6 * highlight(normal, light, 40) * (np.abs(v) < 0.7))
    tube = (ring - 0.40) / 0.14
    grip = glaze * (0.65 + 0.45 * np.maximum(1 - tube ** 2, 0))[..., None]
    colour = np.where(body[..., None], paint, grip)
    hollow = glaze * (0.45 + 0.35 * smooth_step(-1, 1, -side * across + (v - top) / rim))[..., None]
    brim = np.where((lip < 0.76)[..., None], hollow, glaze * 0.6 + 0.3)
    colour = np.where((lip < 1)[..., None], brim, colour)
    return body | handle | (lip < 1), colour


def paint_stone(u, v, light, rng):
    """Paints a grey pebble, which is clutter in the background."""
    wobble = 1 + 0.12 * value_noise(rng, 5 + 2 * u, 5 + 2 * v)
    v = v * 1.3 - 0.25
    grey = rng.uniform(0.35, 0.75) * jitter(rng, (1, 0.98, 0.94), 0.03)
    mask, colour = paint_orange(u * wobble, v * wobble, light, rng, grey)
    pale = grey * colour.mean(-1, keepdims=True) / grey.mean()
    return mask, 0.2 * colour + 0.8 * pale


def paint_carton(u, v, light, rng):
    """Paints a cream or grey box, which is clutter in the background."""
    paper = rng.uniform(0.5, 0.85) * jitter(rng, (1, 0.96, 0.9), 0.03)
    return paint_brick(u, v, light, rng, paper, paper * 0.85)


PAINTERS = {'orange': paint_orange, 'plant': paint_plant, 'fish': paint_fish,
            'brick': paint_brick, 'mug': paint_mug}
SOLES = {'orange': 0.99, 'plant': 0.95, 'fish': 0.56, 'brick': 0.92, 'mug': 0.96}  # v of the bottom of each object
SIZE_FACTORS = {'fish': 1.15, 'plant': 1.05}
CLUTTER = (paint_stone, paint_carton)


# ---- backgrounds: (x, y, rng) -> grey pattern [h, w] around 1 ----

def planks(x, y, rng):
    """Returns boards with grain and dark joints."""
    board = np.floor(x / 14)
    tint = rng.uniform(0.86, 1.1, 64)[board.astype(int) % 64]
    joint = np.minimum(x / 14 - board, 1 - x / 14 + board)
    grain = 0.09 * value_noise(rng, x * 0.7 + 31 * board, y * 0.06) + 0.04 * value_noise(rng, x * 2, y * 0.2)
    return (tint + grain) * (0.7 + 0.3 * smooth_step(0, 0.07, joint))


def fabric(x, y, rng):
    """Returns a checked cloth."""
    period = rng.uniform(10, 18)
    checks = 0.07 * (np.sin(x * 2 * np.pi / period) > 0) + 0.07 * (np.sin(y * 2 * np.pi / period) > 0)
    return 0.93 + checks + 0.03 * np.sin(x * 3) * np.sin(y * 3) + 0.04 * value_noise(rng, x / 9, y / 9)


def plaster(x, y, rng):
    """Returns rough plaster or stone: noise at three scales."""
    return (1 + 0.08 * value_noise(rng, x / 22, y / 22) + 0.05 * value_noise(rng, x / 6, y / 6)
            + 0.05 * value_noise(rng, x / 1.5, y / 1.5))


def wallpaper(x, y, rng):
    """Returns vertical stripes with a small ornament."""
    period = rng.uniform(12, 24)
    dots = np.exp(-4 * (np.sin(x * np.pi / period) ** 2 + np.sin(y * np.pi / period) ** 2))
    stripes = 0.08 * (np.sin(x * 2 * np.pi / period) > 0.2)
    return 0.96 + stripes - 0.14 * dots + 0.03 * value_noise(rng, x / 3, y / 3)


def tiles(x, y, rng):
    """Returns square tiles with pale joints."""
    size = rng.uniform(16, 24)
    column, row = np.floor(x / size), np.floor(y / size)
    tint = rng.uniform(0.88, 1.04, (64, 64))[row.astype(int) % 64, column.astype(int) % 64]
    a, b = x / size - column, y / size - row
    joint = np.minimum(np.minimum(a, 1 - a), np.minimum(b, 1 - b))
    return tint + 0.14 * (1 - smooth_step(0.02, 0.06, joint)) + 0.04 * value_noise(rng, x / 4, y / 4)


WALLS = (plaster, wallpaper, tiles, planks)
TABLES = (planks, fabric, plaster, tiles)
NEUTRALS = ((0.78, 0.75, 0.70), (0.62, 0.60, 0.58), (0.86, 0.82, 0.73), (0.55, 0.50, 0.45),
            (0.66, 0.59, 0.50), (0.48, 0.47, 0.46), (0.72, 0.73, 0.72))


def paint_background(x, y, horizon, rng):
    """Returns a lit wall above the horizon and a table in perspective below it, [h, w, 3]."""
    width = x.max()
    first, second = rng.permutation(len(NEUTRALS))[:2]
    wall = WALLS[rng.randint(len(WALLS))](x + rng.uniform(0, 50), y, rng)
    glow = 1.1 - 0.35 * np.hypot(x / width - rng.uniform(0.1, 0.9), y / width - rng.uniform(0, 0.3))
    colour = jitter(rng, NEUTRALS[first], 0.05) * (wall * glow)[..., None]
    near = np.maximum(y - horizon, 0) + 45  # the vanishing line lies 45 pixels above the far edge of the table
    table = TABLES[rng.randint(len(TABLES))](
        (x - width / 2) * 90 / near + 300, 7000 / near + rng.uniform(0, 50), rng)
    surface = jitter(rng, NEUTRALS[second], 0.05) * (table * (0.8 + 0.0035 * near))[..., None]
    colour = np.where((y > horizon)[..., None], surface, colour)
    return colour * (1 - 0.25 * np.exp(-np.abs(y - horizon) / 3))[..., None]


# ---- scenes ----

def draw(canvas, labels, instances, thing, light, rng):
    """Paints the shadow of a thing and then the thing, in place.

    Args:
      canvas: float RGB array [h, w, 3].
      labels, instances: uint8 arrays [h, w].
      thing: a dict, as in the result of `layout`.
      light: the direction of the light, three numbers.
      rng: a RandomState.
    """
    radius, scale = thing['radius'], SUPERSAMPLING
    reach = 2.2 * radius
    top, left = (max(int((thing[k] - reach) * scale), 0) for k in 'yx')
    box = (slice(top, int((thing['y'] + reach) * scale)), slice(left, int((thing['x'] + reach) * scale)))
    height, width = labels[box].shape
    v, u = np.mgrid[:height, :width]
    u = ((u + left + 0.5) / scale - thing['x']) / radius
    v = ((v + top + 0.5) / scale - thing['y']) / radius
    shadow = ((u + 0.4 * light[0]) / 1.1) ** 2 + ((v - thing['sole'] + 0.16) / 0.32) ** 2
    canvas[box] *= (1 - 0.62 * np.exp(-shadow ** 1.5))[..., None]
    mask, colour = thing['paint'](u, v, light, rng)
    canvas[box][mask] = np.clip(colour, 0, 1)[mask]
    labels[box][mask] = thing['label']
    instances[box][mask] = thing['instance']


def layout(width, height, horizon, names, rng):
    """Places the named objects side by side with some overlap, and clutter between them.

    Returns:
      list of dicts, from far to near, with the keys paint (the painter), label, instance (0 for clutter), x, y, radius
      (in pixels), sole (the v of its bottom) and foot (the y of its bottom).
    """
    things = []
    for _ in range(rng.randint(1, 4)):
        things.append({'paint': CLUTTER[rng.randint(len(CLUTTER))], 'label': 0, 'instance': 0, 'sole': 0.92,
                       'radius': rng.uniform(9, 16), 'x': rng.uniform(0, width),
                       'foot': horizon + rng.uniform(3, 40)})
    mean_radius = 0.5 * np.sqrt(0.85 * width * height / len(names))
    for k, name in enumerate(names):
        radius = np.clip(mean_radius * rng.uniform(0.88, 1.12) * SIZE_FACTORS.get(name, 1), 17, 44)
        share = (k + 0.5 + rng.uniform(-0.25, 0.25)) / len(names)
        sole = SOLES[name]
        low = min(max(horizon + 8, (0.85 + sole) * radius), height - 3)
        things.append({'paint': PAINTERS[name], 'instance': k + 1, 'radius': radius, 'sole': sole,
                       'label': CLASSES.index(name),
                       'x': 0.65 * radius + share * (width - 1.3 * radius),
                       'foot': rng.uniform(low, height - 2)})
    for thing in things:
        thing['y'] = thing['foot'] - thing['sole'] * thing['radius']
    return sorted(things, key=lambda thing: thing['foot'])


def add_border(labels, instances):
    """Returns the labels, uint8 [h, w], with the pixels on both sides of each edge between objects set to BORDER."""
    edge = np.zeros(labels.shape, bool)
    across, down = instances[:, 1:] != instances[:, :-1], instances[1:] != instances[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return np.where(edge, BORDER, labels).astype(np.uint8)


def paint_scene(width, height, names, rng):
    """Paints a still life; returns (image, labels), uint8 [height, width, 3] and [height, width]."""
    scale = SUPERSAMPLING
    y, x = (np.mgrid[:height * scale, :width * scale] + 0.5) / scale
    light = np.array([rng.choice([-1, 1]) * rng.uniform(0.3, 0.6), rng.uniform(-0.65, -0.45), 0])
    light[2] = np.sqrt(1 - (light ** 2).sum())
    horizon = rng.uniform(0.25, 0.42) * height
    canvas = np.clip(paint_background(x, y, horizon, rng), 0, 1)
    labels, instances = np.zeros(x.shape, np.uint8), np.zeros(x.shape, np.uint8)
    for thing in layout(width, height, horizon, names, rng):
        draw(canvas, labels, instances, thing, light, rng)
    image = canvas.reshape(height, scale, width, scale, 3).mean((1, 3))
    image = image * rng.uniform(0.94, 1.04) + rng.normal(0, 0.008, image.shape)
    middle = slice(scale // 2, None, scale)
    labels = add_border(labels[middle, middle], instances[middle, middle])
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8), labels


def well_composed(labels, names):
    """Returns whether the share of background pixels is in BACKGROUND_SHARE and no class is nearly hidden."""
    low, high = BACKGROUND_SHARE
    visible = [(labels == CLASSES.index(name)).mean() for name in set(names)]
    return low <= (labels == 0).mean() <= high and min(visible) > 0.2 / len(names)


def scenes(seed):
    """Yields (name, image, labels) for each scene; scenes that are not well composed are painted again."""
    order, queue = np.random.RandomState(seed), []
    for index in range(NUM_TRAIN + NUM_VAL):
        count = (3, 2, 3, 4)[index % 4]
        while len(queue) < count:  # classes are dealt like cards, which keeps them balanced
            queue += [list(PAINTERS)[k] for k in order.permutation(len(PAINTERS))]
        names, queue = queue[:count], queue[count:]
        width, height = SIZES[order.randint(len(SIZES))]
        rng = np.random.RandomState(order.randint(2 ** 31))
        for _ in range(100):
            image, labels = paint_scene(width, height, names, rng)
            if well_composed(labels, names):
                break
        yield 'still_life_%03d' % index, image, labels


# ---- files ----

def write_sample(folder, seed):
    """Writes images, labels, lists and the palette file to an existing, empty folder."""
    for sub in ('JPEGImages', 'SegmentationClassAug'):
        os.mkdir(os.path.join(folder, sub))
    colours, lines = palette.voc_colours(), []
    for name, image, labels in tqdm(scenes(seed), total=NUM_TRAIN + NUM_VAL, desc='painting', unit='image'):
        line = '/JPEGImages/%s.jpg /SegmentationClassAug/%s.png' % (name, name)
        image_path, label_path = (folder + part for part in line.split())
        Image.fromarray(image).save(image_path, quality=90)
        label_image = Image.fromarray(labels)
        label_image.putpalette(colours.ravel().tolist())
        label_image.save(label_path, optimize=True)
        lines.append(line)
    for name, part in (('train.txt', lines[:NUM_TRAIN]), ('val.txt', lines[NUM_TRAIN:])):
        data_lists.write_list(os.path.join(folder, name), sorted(part))
    with open(os.path.join(folder, 'classes.txt'), 'w') as file:
        file.writelines('%s %d %d %d\n' % (name, r, g, b) for name, (r, g, b) in zip(CLASSES, colours))


def move_files(source, target):
    """Moves every file below source to the same place below target; the lists, at the top level, are moved last."""
    for folder, _, files in sorted(os.walk(source), reverse=True):
        place = os.path.join(target, os.path.relpath(folder, source))
        os.makedirs(place, exist_ok=True)
        for name in files:
            os.replace(os.path.join(folder, name), os.path.join(place, name))


def main():
    target = os.path.abspath(FLAGS.out_dir)
    temporary = None
    try:
        os.makedirs(target, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix='.sample-', dir=target)
        write_sample(temporary, FLAGS.seed)
        move_files(temporary, target)
    except OSError as error:
        raise UserError('--out_dir=%s cannot be written to (%s): give another folder.' % (
            FLAGS.out_dir, error.strerror or error))
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)
    print('%d training and %d validation images are in %s' % (NUM_TRAIN, NUM_VAL, target))


if __name__ == '__main__':
    command_line.DEFINE_path('out_dir', os.path.join(ROOT, 'dataset', 'sample'),
                             'folder for the sample data set', output=True)
    flags.DEFINE_integer('seed', 0, 'seed of the random scenes', lower_bound=0, upper_bound=2 ** 32 - 1)
    sys.exit(command_line.run(main))
