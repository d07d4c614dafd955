"""Reads LabelMe, COCO (including CVAT's COCO exports) and Datumaro annotations and paints them as index masks.

The format is detected from the content of the .json file. Coordinates are checked when a file is read, so the only
annotations that can still be refused while painting are run-length masks and very large circles.
"""

import collections
import contextlib
import json
import math
import os
import re
from typing import Any, List, NamedTuple, Optional, Tuple

import numpy as np
from PIL import Image, ImageDraw

from utils.data.data_check import map_with_progress
from utils.data.image_files import is_regular_file, read_file
from utils.data.palette import IGNORE_LABEL
from utils.system import runtime
from utils.system.command_line import PICTURES
from utils.system.errors import UserError, quoted, reason

MOST_PIXELS = 1 << 28  # in a mask
MOST_COORDINATE = 1 << 24  # pixels; Pillow computes with 32-bit integers
MOST_RADIUS = 20000  # pixels; with a larger radius, integers overflow when Pillow draws an ellipse
EXPORT = 'export as COCO 1.0 there and convert that'

_FAULTS = (AttributeError, IndexError, KeyError, MemoryError, OverflowError, RecursionError, TypeError, ValueError)


class Region(NamedTuple):
    """An area with one label."""
    label: Optional[str]  # None for a crowd, whose pixels are ignored
    kind: str  # a key of PAINTERS
    data: Any  # the shape, in the form that its painter expects


class Picture(NamedTuple):
    """The annotations of one image."""
    where: str  # the annotation file and the image, for messages
    name: str  # relative path with / and an extension; the mask is named after it
    image: str  # path of the image; '' if it does not exist
    size: Optional[Tuple[int, int]]  # (height, width); None if the file does not give the size
    regions: List[Region]  # in the order in which they are painted


class Annotations(NamedTuple):
    """The content of one or more annotation files."""
    kind: str  # a key of READERS
    pictures: List[Picture]
    labels: List[str]  # in the order of their classes; may contain duplicates
    left_out: collections.Counter  # {kind of annotation that is not painted: number of such annotations}


# ---- files ----

def read(path, image_dir='', keep_crowds=False):
    """Reads an annotation file, or a folder of LabelMe files.

    Args:
      path: the file or folder.
      image_dir: the folder that contains the images. If empty, the usual places near the annotations are searched.
      keep_crowds: whether COCO crowds keep their label instead of being ignored.

    Returns:
      an Annotations.

    Raises:
      UserError: a file is damaged or has an unknown format, or a folder contains formats other than LabelMe's.
    """
    files = json_files(path)

    def read_one(file):
        try:
            content = load(file)
            folder = path if os.path.isdir(path) else os.path.dirname(path)
            return READERS[recognise(content, file)](content, file, folder, image_dir, keep_crowds)
        except UserError as error:
            return str(error)

    threads = 1 if len(files) == 1 else runtime.usable_cores()
    parts = list(map_with_progress(read_one, files, threads, 'annotations', 'file'))
    problems = [part for part in parts if isinstance(part, str)]
    if problems:
        raise UserError(problems[0] if len(problems) == 1 else '%d annotation files cannot be read: %s' % (
            len(problems), problems[0]))
    other = [file for file, part in zip(files, parts) if part.kind != 'labelme']
    if other and len(files) > 1:
        raise UserError('--annotations=%s contains %d .json files, but %s is not a LabelMe file: give that file '
                        'alone.' % (
            quoted(path, 60), len(files), quoted(os.path.relpath(other[0], path), 60)))
    labels = [label for part in parts for label in part.labels]
    return Annotations(parts[0].kind, [picture for part in parts for picture in part.pictures],
                       labels if other else sorted(set(labels)), sum((part.left_out for part in parts),
                                                                     collections.Counter()))


def json_files(path):
    """Returns [path] for a file, or the sorted paths of all .json files below a folder, except hidden ones.

    Raises:
      UserError: the folder contains no .json file.
    """
    if not os.path.isdir(path):
        return [path]
    files, others = [], collections.Counter()
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith('.')]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix == '.json' and not name.startswith('.'):
                files.append(os.path.join(folder, name))
            others[suffix] += 1
    if not files:
        raise UserError('--annotations=%s: the folder contains no .json file%s.' % (
            quoted(path), '; if its XML files come from CVAT, ' + EXPORT if others['.xml'] else ''))
    return sorted(files)


def load(path):
    """Returns the content of a JSON file; raises UserError if the file is missing, damaged or not JSON."""
    try:
        data = read_file(path)
    except OSError as error:
        raise UserError('%s: cannot be read (%s).' % (quoted(path), reason(error)))
    start = data[:64].lstrip(b'\xef\xbb\xbf \t\r\n')
    if start.startswith(b'<'):
        raise UserError('%s: XML annotations, such as those of CVAT, are not supported: %s.' % (quoted(path), EXPORT))
    if start.startswith(b'PK\x03\x04'):
        raise UserError("%s is a zip file: unzip it and give the .json file in it; if it is a CVAT task backup, %s." % (
            quoted(path), EXPORT))
    try:
        return json.loads(data)
    except UnicodeDecodeError:
        raise UserError('%s is not UTF-8 text: save it as UTF-8.' % quoted(path))
    except (MemoryError, RecursionError, ValueError) as error:
        raise UserError('%s: damaged JSON (%s): get the file again.' % (quoted(path), reason(error)[:80]))


def recognise(content, path):
    """Returns the key of READERS for the content of a JSON file; raises UserError if the format is not supported."""
    first = content[0] if isinstance(content, list) and content else content
    keys = set(first) if isinstance(first, dict) else set()
    if {'shapes', 'tracks'} <= keys or {'labels', 'jobs'} <= keys or {'labels', 'bug_tracker'} <= keys:
        raise UserError('%s: CVAT task backups are not supported: %s.' % (quoted(path), EXPORT))
    if isinstance(content, dict):
        for kind, needed in (('labelme', {'shapes'}), ('coco', {'images', 'annotations'}),
                             ('datumaro', {'items', 'categories'})):
            if needed <= keys:
                return kind
        if {'imgHeight', 'objects'} <= keys:
            raise UserError('%s: to convert Cityscapes polygons, use convert_cityscapes.py.' % quoted(path))
    raise UserError('%s is not LabelMe, COCO or Datumaro JSON: export the annotations as COCO instances (a dict of '
                    'images, annotations and categories).' % quoted(path))


@contextlib.contextmanager
def _reporting_damage(where):
    """Turns errors caused by invalid values or a missing pycocotools into a UserError that names the place."""
    try:
        yield
    except UserError:
        raise
    except ImportError:
        raise UserError('%s: run-length masks need pycocotools: pip install -r requirements-coco.txt.' % where)
    except _FAULTS as error:
        raise UserError('%s: damaged annotation (%s): fix it or remove it.' % (where, _explanation(error)))


def _explanation(error):
    """Returns an explanation of an error in plain words."""
    if isinstance(error, KeyError):
        return '%s is missing' % reason(error)[:40]
    if isinstance(error, (AttributeError, IndexError, TypeError)):
        return 'a value has the wrong type'
    return reason(error)[:80]


def _clean(name):
    """Returns an image path from an annotation file as a relative path with / as separator and no `..`."""
    if not isinstance(name, str) or '\0' in name:
        raise ValueError('the name of an image is not text')
    name.encode('utf-8')  # raises a ValueError for half of a surrogate pair
    parts = [part for part in re.split(r'[/\\]+', name) if part not in ('', '.', '..') and not part.endswith(':')]
    if not parts:
        raise ValueError('an image has no name')
    return '/'.join(parts)


def _locate(name, folders, suffixes=('',)):
    """Returns the path of an image: folder/name in the first folder that has it, else folder/basename; else ''."""
    for spelling in (name, name.rsplit('/', 1)[-1]):
        for folder in folders:
            for suffix in suffixes:
                path = os.path.join(folder, spelling + suffix)
                if is_regular_file(path):
                    return path
    return ''


def _image_folders(path, image_dir):
    """Returns the folders in which to look for the images of a COCO or Datumaro file."""
    if image_dir:
        return [image_dir]
    subset = re.sub(r'^instances_', '', os.path.splitext(os.path.basename(path))[0])
    here = os.path.dirname(os.path.abspath(path))
    return [os.path.join(folder, below) for folder in (here, os.path.dirname(here))
            for below in ('', os.path.join('images', subset), 'images', subset)]


# ---- formats ----

def _labelme(content, path, folder, image_dir, keep_crowds):
    """Returns the Annotations of a LabelMe file, whose regions are painted in the order of the file."""
    regions, left_out = [], collections.Counter()
    with _reporting_damage(quoted(path)):
        for shape in content['shapes']:
            kind, label = shape.get('shape_type') or 'polygon', _label(shape['label'])
            if kind in ('polygon', 'rectangle', 'circle'):
                points = _points(shape['points'])
                if len(points) < {'polygon': 3}.get(kind, 2):
                    left_out[kind + 's with too few points'] += 1
                    continue
                regions.append(Region(label, kind, points if kind == 'circle' else [points]))
            else:
                left_out['shapes of type ' + quoted(kind, 20)] += 1
        size = _size(content.get('imageHeight'), content.get('imageWidth'))
        name = os.path.relpath(path, folder or '.')
        beside = os.path.dirname(path)
        stem = os.path.splitext(os.path.basename(path))[0]
        given = content.get('imagePath')
        raw = os.path.join(beside, given.replace('\\', '/')) if isinstance(given, str) and '\0' not in given else ''
        places = [os.path.join(image_dir, os.path.dirname(name)), image_dir] if image_dir else [beside]
        image = raw if raw and not image_dir and is_regular_file(raw) else (
            _locate(_clean(given), places) if given else '') or _locate(stem, places, PICTURES)
    return Annotations('labelme', [Picture(quoted(path), name.replace(os.sep, '/'), image, size, regions)],
                       [region.label for region in regions], left_out)


def _coco(content, path, folder, image_dir, keep_crowds):
    """Returns the Annotations of a COCO file; crowds are painted first, then regions from large to small."""
    left_out, regions = collections.Counter(), collections.defaultdict(list)
    with _reporting_damage(quoted(path)):
        categories = sorted(((item['id'], _label(item['name'])) for item in content['categories']))
        label_of = dict(categories)
        if len(label_of) < len(categories):
            raise ValueError('several categories have the same id')
        images = {item['id']: item for item in content['images']}
        if len(images) < len(content['images']):
            raise ValueError('several images have the same id')
        for item in content['annotations']:
            where = 'annotation %s: ' % quoted(item.get('id', '?'), 20)
            if item['image_id'] not in images or item['category_id'] not in label_of:
                raise ValueError(where + 'its image or category does not exist')
            try:
                kind, data = _segmentation(item.get('segmentation'))
            except _FAULTS as error:
                raise ValueError(where + _explanation(error)[:60])
            if kind:
                crowd = bool(item.get('iscrowd')) and not keep_crowds
                regions[item['image_id']].append((not crowd, -_area(kind, data), len(regions[item['image_id']]), Region(
                    None if crowd else label_of[item['category_id']], kind, data)))
            else:
                left_out['annotations without a polygon or mask'] += 1
        places, pictures = _image_folders(path, image_dir), []
        for key, item in images.items():
            name = _clean(item['file_name'])
            pictures.append(Picture('%s, image %s' % (quoted(path, 60), quoted(name, 60)), name, _locate(name, places),
                                    _size(item.get('height'), item.get('width')),
                                    [part[-1] for part in sorted(regions[key], key=lambda part: part[:3])]))
    return Annotations('coco', pictures, [label for _, label in categories], left_out)


def _segmentation(segmentation):
    """Returns the kind and data of a Region for a COCO segmentation; (None, None) if it is empty."""
    if isinstance(segmentation, dict):
        return 'rle', {'counts': segmentation['counts'], 'size': _size(*segmentation['size'])}
    polygons = [_points(numbers) for numbers in segmentation or () if len(numbers) >= 6]
    return ('area', polygons) if polygons else (None, None)


def _area(kind, data):
    """Returns the number of pixels of a run-length mask, or the area of polygons."""
    if kind == 'rle':
        return int(_rle(data, ask='area'))
    return sum(abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2 for x, y in (
        points.T for points in data))


def _datumaro(content, path, folder, image_dir, keep_crowds):
    """Returns the Annotations of a Datumaro file, whose regions are painted in ascending z_order."""
    left_out, pictures = collections.Counter(), []
    with _reporting_damage(quoted(path)):
        labels = [_label(item['name']) for item in content['categories']['label']['labels']]
        places = _image_folders(path, image_dir)
        for item in content['items']:
            regions = []
            for number, annotation in enumerate(item['annotations']):
                kind = annotation['type']
                if kind == 'polygon':
                    kind, data = 'area', [_points(annotation['points'])]
                elif kind == 'bbox':
                    x, y, width, height = annotation['bbox']
                    right, bottom = x + width, y + height
                    kind, data = 'area', [_points([x, y, right, y, right, bottom, x, bottom])]
                elif kind == 'mask':
                    kind, data = _segmentation(annotation['rle'])
                else:
                    left_out['annotations of type ' + quoted(kind, 20)] += 1
                    continue
                label_id = annotation['label_id']
                if label_id is None or not 0 <= label_id < len(labels):
                    raise ValueError('item %s: label %s does not exist' % (
                        quoted(item['id'], 30), quoted(label_id, 20)))
                regions.append((annotation.get('z_order', 0), number, Region(labels[label_id], kind, data)))
            image = item.get('image') or {}
            name = _clean(image.get('path') or item['id'])
            pictures.append(Picture(
                '%s, image %s' % (quoted(path, 60), quoted(name, 60)), name,
                _locate(name, places, ('',) if image.get('path') else ('',) + tuple(PICTURES)),
                _size(*image['size']) if image.get('size') else None,
                [part[-1] for part in sorted(regions, key=lambda part: part[:2])]))
    return Annotations('datumaro', pictures, labels, left_out)


READERS = {'labelme': _labelme, 'coco': _coco, 'datumaro': _datumaro}


def _label(name):
    """Returns a label with single spaces between its words; raises ValueError if it is empty."""
    name = ' '.join(name.split())
    if not name:
        raise ValueError('a label is empty')
    return name


def _points(numbers):
    """Returns (x, y) coordinates, given as a flat list or as pairs, as float64 [n, 2].

    Raises:
      ValueError: a value is not a number, or is larger than MOST_COORDINATE.
    """
    points = np.array(numbers, np.float64).reshape(-1, 2)
    if not np.isfinite(points).all() or np.abs(points).max(initial=0) > MOST_COORDINATE:
        raise ValueError('a coordinate is not finite or too large')
    return points


def _size(height, width):
    """Returns (height, width) as integers, or None if both are None; raises ValueError for an invalid size."""
    if height is None and width is None:
        return None
    size = int(height), int(width)
    if size != (height, width) or min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
        raise ValueError('%s x %s is not a valid size of at most %d pixels' % (
            quoted(height, 20), quoted(width, 20), MOST_PIXELS))
    return size


# ---- masks ----

def paint(picture, size, value_of):
    """Paints the regions of a picture on a background of zeros.

    Args:
      picture: a Picture.
      size: (height, width).
      value_of: {label: value of its pixels}.

    Returns:
      uint8 [h, w].

    Raises:
      UserError: a run-length mask is damaged or has another size, a circle is too large, or pycocotools is missing.
    """
    mask = Image.new('L', size[::-1], 0)
    canvas = ImageDraw.Draw(mask)
    with _reporting_damage(picture.where):
        for region in picture.regions:
            PAINTERS[region.kind](mask, canvas, region.data, IGNORE_LABEL if region.label is None else (
                value_of[region.label]))
    return np.asarray(mask)


def _paint_polygons(mask, canvas, polygons, value):
    for points in polygons:
        canvas.polygon([tuple(point) for point in points.tolist()], fill=value, outline=value)


def _paint_area(mask, canvas, polygons, value):
    """Paints the pixels whose centres lie inside any of the polygons (even-odd rule), as COCO's masks do."""
    inside = np.zeros(mask.size[::-1], bool)  # [h, w]
    for points in polygons:
        (x, y), (next_x, next_y) = points.T, np.roll(points, -1, axis=0).T
        for row in range(max(0, int(y.min()) - 1), min(len(inside), int(min(y.max(), len(inside))) + 1)):
            crossing = (y <= row + 0.5) != (next_y <= row + 0.5)
            share = (row + 0.5 - y[crossing]) / (next_y - y)[crossing]
            columns = np.sort(x[crossing] + share * (next_x - x)[crossing])
            edges = np.clip(np.ceil(columns - 0.5), 0, inside.shape[1]).astype(int)
            for left, right in zip(edges[::2], edges[1::2]):
                inside[row, left:right] = True
    mask.paste(value, mask=Image.fromarray(inside * np.uint8(255)))


def _paint_rectangle(mask, canvas, corners, value):
    (left, top), (right, bottom) = corners[0].min(0).tolist(), corners[0].max(0).tolist()
    canvas.rectangle([left, top, right, bottom], fill=value)


def _paint_circle(mask, canvas, points, value):
    (x, y), (edge_x, edge_y) = points[:2].tolist()
    radius = math.hypot(edge_x - x, edge_y - y)
    if radius > MOST_RADIUS:
        raise ValueError('the radius of a circle is larger than %d pixels' % MOST_RADIUS)
    canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=value)


def _paint_rle(mask, canvas, rle, value):
    if rle['size'] != mask.size[::-1]:
        raise ValueError('a run-length mask has %d x %d pixels, unlike the image' % rle['size'])
    mask.paste(value, mask=Image.fromarray(_rle(rle) * np.uint8(255)))


# Masks made by LabelMe include the edges of the polygons; those made by COCO do not.
PAINTERS = {'polygon': _paint_polygons, 'area': _paint_area, 'rectangle': _paint_rectangle, 'circle': _paint_circle,
            'rle': _paint_rle}


def _rle(rle, ask='decode'):
    """Decodes a run-length mask or measures its area.

    Args:
      rle: {'counts': list of run lengths or COCO's compressed string, 'size': (h, w)}.
      ask: 'decode' or 'area'.

    Returns:
      uint8 [h, w] of zeros and ones; for 'area', the number of ones.

    Raises:
      ImportError: pycocotools is missing.
      ValueError: the run lengths do not cover the mask.
    """
    from pycocotools import mask as masks  # optional

    height, width = rle['size']
    counts = rle['counts']
    if isinstance(counts, list):
        if not all(isinstance(count, int) and 0 <= count <= MOST_PIXELS for count in counts):
            raise ValueError('a run length is not a valid number of pixels')
        packed = masks.frPyObjects({'counts': counts, 'size': [height, width]}, height, width)
    else:
        packed = {'counts': counts.encode('ascii'), 'size': [height, width]}
    if ask == 'area':
        return masks.area(packed)
    # If the run lengths cover fewer pixels than the mask has, decode() leaves the rest uninitialized. They cover the
    # whole mask if decoding into a mask with one pixel less fails.
    decoded = masks.decode(packed)
    try:
        masks.decode(dict(packed, size=[height * width - 1, 1]))
    except ValueError:
        return decoded
    raise ValueError('the run lengths of a mask cover fewer pixels than its size')
