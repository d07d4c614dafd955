"""Runs convert_annotations.py as a command."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from utils.data.data_lists import check_files_exist, list_line, read_labeled_image_list
from utils.system.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(script, *args):
    process = subprocess.run([sys.executable, script] + list(args), cwd=ROOT, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, universal_newlines=True)
    assert 'Traceback' not in process.stderr, process.stderr
    return process.returncode, process.stdout, process.stderr


def paint(folder, *names):
    for name in names:
        os.makedirs(os.path.dirname(str(folder / name)), exist_ok=True)
        pixels = np.zeros([8, 9] + [3] * name.startswith('images'), np.uint8)
        pixels[2:] = 1
        Image.fromarray(pixels).save(str(folder / name))


def make_list(folder, *args):
    return run('convert_annotations.py', '--make_list', str(folder / 'images'), str(folder / 'labels'), *args)


def read(folder, name):
    source = read_labeled_image_list(str(folder), str(folder / (name + '.txt')))
    check_files_exist(source, True)
    return [tuple(os.path.relpath(path, str(folder)) for path in pair) for pair in zip(source.images, source.labels)]


def test_lists_pair_by_name_and_subfolder_and_are_read_back(tmp_path):
    wanted = [('images/a b.jpg', 'labels/a b_mask.png'), ('images/c.jpg', 'labels/c.png'),
              ("images/it's 'one' x.jpg", "labels/it's 'one' x.png"), ('images/s/c.jpg', 'labels/s/c-label.png'),
              ('images/z_000000_000019_leftImg8bit.png', 'labels/z_000000_000019_gtFine_labelTrainIds.png')]
    paint(tmp_path, *[name for pair in wanted for name in pair] + ['images/alone.jpg', 'labels/single.png'])
    code, out, err = make_list(tmp_path)
    assert code == 0, err
    train, val = read(tmp_path, 'train'), read(tmp_path, 'val')
    assert len(val) == 1 and sorted(train + val) == sorted(wanted)
    assert 'images without a label: 1 (alone.jpg)' in err and 'labels without an image: 1 (single.png)' in err
    command = shlex.split(out.splitlines()[-1])
    assert '--num_classes=2' in command
    code, checked, err = run(*command[1:])
    assert code == 0 and 'images 4, labels 4' in checked, err


def test_the_seed_decides_the_split_and_earlier_lists_are_kept(tmp_path):
    paint(tmp_path, *['%s/%d.png' % (folder, i) for folder in ('images', 'labels') for i in range(20)])
    drawn = []
    for seed in '001':
        code, out, err = make_list(tmp_path, '--seed=' + seed, '--val_fraction=0.3')
        assert code == 0, err
        drawn.append(read(tmp_path, 'val'))
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 6
    assert 'train.txt.old2' in out and (tmp_path / 'val.txt.old').exists()
    assert make_list(tmp_path, '--val_fraction=0')[0] == 0
    assert len(read(tmp_path, 'train')) == 20 and not (tmp_path / 'val.txt').exists()


@pytest.mark.parametrize('names, told', [
    (['images/a.jpg', 'labels/a.png', 'labels/a_mask.png'], 'not clear'),
    (['images/a.jpg', 'labels/a_label.png', 'labels/a_mask.png'], 'not clear'),
    (['images/a.jpg', 'images/a.png', 'labels/a.png'], 'not clear'),
    (['images/a.jpg', 'labels/b.png'], 'no image has a label'),
    (['images/a.jpg'], '--label_dir'),
])
def test_what_cannot_be_paired_is_refused_and_no_list_written(tmp_path, names, told):
    paint(tmp_path, *names)
    code, _, err = make_list(tmp_path)
    message = [line for line in err.splitlines() if line.startswith('error: ')]
    assert code == 1 and len(message) == 1 and told in message[0] and len(message[0]) < 300, err
    assert not list(tmp_path.glob('*.txt'))


def test_a_path_that_no_line_can_hold_is_refused():
    assert list_line('a b', '#c') == '"a b" "#c"'
    for path in ('a\nb', 'a\tb', 'a\0b'):
        with pytest.raises(UserError, match='rename'):
            list_line(path, 'c')


def test_label_folders_without_pictures_and_numbers_of_classes_that_are_not_known(tmp_path):
    paint(tmp_path, 'images/a.png', 'images/b.png', 'labels/a.png', 'labels/b.png')
    (tmp_path / 'masks').mkdir()
    code, _, err = run('convert_annotations.py', '--make_list', str(tmp_path / 'images'), str(tmp_path / 'masks'))
    assert code == 1 and '--label_dir=' in err and 'contains no images' in err and '--image_dir' not in err
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(str(tmp_path / 'labels' / 'a.png'))
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(str(tmp_path / 'labels' / 'b.png'))
    assert '--num_classes=2 --label_map=binary ' in make_list(tmp_path)[1]
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(str(tmp_path / 'labels' / 'b.png'))
    out = make_list(tmp_path)[1]
    assert 'in place of N' in out and '--num_classes=N ' in out and 'train.txt: 1 image\n' in out


# ---- annotations ----

def picture(path, height=40, width=60, **save):
    os.makedirs(os.path.dirname(str(path)), exist_ok=True)
    Image.fromarray(np.random.RandomState(0).randint(0, 255, [height, width, 3], np.uint8)).save(str(path), **save)


def write(path, content):
    os.makedirs(os.path.dirname(str(path)), exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding='utf-8')
    return path


def shape(label, points, kind='polygon'):
    return {'label': label, 'points': points, 'shape_type': kind, 'group_id': None, 'flags': {}}


def labelme(name, *shapes, **more):
    return dict({'version': '5.0', 'flags': {}, 'shapes': list(shapes), 'imagePath': name, 'imageData': None,
                 'imageHeight': 40, 'imageWidth': 60}, **more)


def coco(*annotations, **more):
    for number, annotation in enumerate(annotations):
        annotation.setdefault('id', number)
        annotation.setdefault('image_id', 1)
    return dict({'images': [{'id': 1, 'file_name': 'a.png', 'height': 40, 'width': 60}],
                 'categories': [{'id': 9, 'name': 'tree'}, {'id': 3, 'name': 'wheel'}, {'id': 5, 'name': 'ignore'}],
                 'annotations': list(annotations)}, **more)


SQUARE = [[10, 10], [30, 10], [30, 30], [10, 30]]
FLAT = [number for point in SQUARE for number in point]
INNER = [15, 15, 20, 15, 20, 20, 15, 20]


def convert(folder, annotations, *args):
    return run('convert_annotations.py', '--annotations=%s' % annotations, '--label_dir=%s' % (folder / 'labels'),
               *args)


def mask(folder, name='a.png'):
    return np.asarray(Image.open(str(folder / 'labels' / name)))


def check_printed_command(out):
    command = shlex.split(out.splitlines()[-1])
    code, checked, err = run(*command[1:])
    assert code == 0 and 'problems 0' in checked, (checked, err)
    return checked


def refusal(result):
    code, _, err = result
    message = [line for line in err.splitlines() if line.startswith('error: ')]
    assert code == 1 and len(message) == 1 and len(message[0]) < 310, err
    return message[0]


def test_labelme_shapes_are_painted_in_their_order(tmp_path):
    for name in ('x/a.jpg', 'x/b.jpg', 'y/a.jpg'):
        picture(tmp_path / name)
    write(tmp_path / 'x' / 'a.json', labelme(
        'a.jpg', shape('wheel', SQUARE), shape('car', [[20, 20], [50, 35]], 'rectangle'),
        shape('_background_', [[25, 25], [28, 25]], 'circle'), shape('Void', [[0, 0], [4, 2]], 'rectangle'),
        shape('wire', [[0, 0], [9, 9]], 'line')))
    write(tmp_path / 'x' / 'b.json', labelme('..\\x\\b.jpg', shape('tree', SQUARE)))
    write(tmp_path / 'y' / 'a.json', labelme('a.jpg', shape('car ', SQUARE, None)))
    code, out, err = convert(tmp_path, tmp_path)
    assert code == 0, err
    assert 'shapes of type line: 1' in err
    label = mask(tmp_path, 'x/a.png')
    wanted = np.zeros([40, 60], np.uint8)
    wanted[10:31, 10:31] = 3
    wanted[20:36, 20:51] = 1
    wanted[0:3, 0:5] = 255
    circle = np.hypot(*(np.indices([40, 60]) - np.array([25, 25])[:, None, None])) <= 2.5
    assert not label[circle].any()
    far = np.hypot(*(np.indices([40, 60]) - np.array([25, 25])[:, None, None])) > 4
    np.testing.assert_array_equal(label[far], wanted[far])
    assert set(np.unique(mask(tmp_path, 'x/b.png'))) == {0, 2} and set(np.unique(mask(tmp_path, 'y/a.png'))) == {0, 1}
    assert (tmp_path / 'labels' / 'classes.txt').read_text() == (
        'background 0 0 0\ncar 128 0 0\ntree 0 128 0\nwheel 128 128 0\n')
    assert 'wheel' in check_printed_command(out) and len(read(tmp_path, 'train') + read(tmp_path, 'val')) == 3
    assert convert(tmp_path, tmp_path)[0] == 0


def test_coco_paints_crowds_first_and_larger_areas_first_in_the_order_of_category_ids(tmp_path):
    pytest.importorskip('pycocotools')
    from pycocotools import mask as masks

    crowd = np.zeros([40, 60], np.uint8, order='F')
    crowd[:, :12] = 1
    packed = masks.encode(crowd)
    runs = {'counts': [40 * 50, 80, 40 * 8], 'size': [40, 60]}
    picture(tmp_path / 'images' / 'default' / 'a.png')
    path = write(tmp_path / 'annotations' / 'instances_default.json', coco(
        {'category_id': 3, 'segmentation': [INNER], 'area': 0}, {'category_id': 9, 'segmentation': [FLAT]},
        {'category_id': 9, 'segmentation': {'counts': packed['counts'].decode(), 'size': [40, 60]}, 'iscrowd': 1},
        {'category_id': 3, 'segmentation': runs}, {'category_id': 3, 'bbox': [0, 0, 5, 5], 'segmentation': []}))
    code, out, err = convert(tmp_path, path)
    assert code == 0, err
    wanted = np.zeros([40, 60], np.uint8)
    wanted[:, :12] = 255
    wanted[10:30, 10:30] = 2
    wanted[15:20, 15:20] = 1
    wanted[:, 50:52] = 1
    np.testing.assert_array_equal(mask(tmp_path), wanted)
    assert 'ignored, with value 255: 1' in err and 'without a polygon or mask: 1' in err
    assert (tmp_path / 'labels' / 'classes.txt').read_text() == 'background 0 0 0\nwheel 128 0 0\ntree 0 128 0\n'
    check_printed_command(out)
    assert convert(tmp_path, path, '--keep_crowds')[0] == 0
    wanted[wanted == 255] = 2
    np.testing.assert_array_equal(mask(tmp_path), wanted)


def test_datumaro_paints_by_z_order(tmp_path):
    picture(tmp_path / 'images' / 'default' / 'a.png')
    path = write(tmp_path / 'annotations' / 'default.json', {
        'info': {}, 'categories': {'label': {'labels': [{'name': 'wheel'}, {'name': 'car'}]}}, 'items': [{
            'id': 'a', 'image': {'path': 'a.png', 'size': [40, 60]}, 'annotations': [
                {'type': 'polygon', 'label_id': 0, 'points': INNER, 'z_order': 1},
                {'type': 'bbox', 'label_id': 1, 'bbox': [10, 10, 20, 20], 'z_order': 0},
                {'type': 'label', 'label_id': 1}]}]})
    code, out, err = convert(tmp_path, path)
    assert code == 0, err
    wanted = np.zeros([40, 60], np.uint8)
    wanted[10:30, 10:30] = 2
    wanted[15:20, 15:20] = 1
    np.testing.assert_array_equal(mask(tmp_path), wanted)
    assert 'annotations of type label: 1' in err
    check_printed_command(out)


def test_files_of_classes_and_missing_images(tmp_path):
    path = write(tmp_path / 'a.json', coco({'category_id': 3, 'segmentation': [FLAT]}))
    names = write(tmp_path / 'names.txt', '__ignore__\n_background_\ntree\nwheel\n')
    code, out, err = convert(tmp_path, path, '--classes=%s' % names)
    assert code == 0 and 'do not exist' in err and 'no list is written' in err and 'next' not in out, err
    assert mask(tmp_path).max() == 2
    names.write_text('tree 0 0 0\nwheel 1 2 3\n')
    picture(tmp_path / 'pictures' / 'a.png')
    code, out, err = convert(tmp_path, path, '--classes=%s' % names, '--image_dir=%s' % (tmp_path / 'pictures'))
    assert code == 0, err
    lines = (tmp_path / 'labels' / 'classes.txt').read_text().splitlines()
    assert lines[0].startswith('background ') and lines[1:] == ['tree 0 0 0', 'wheel 1 2 3']
    check_printed_command(out)
    names.write_text('tree\n')
    assert 'wheel' in refusal(convert(tmp_path, path, '--classes=%s' % names))


def test_odd_labels_and_several_annotations_of_an_image(tmp_path):
    picture(tmp_path / 'a.png')
    labels = ['# of\nlines', 'Car', 'car', '\u6811', '#']
    for name in ('a.json', 'b.json'):
        write(tmp_path / name, labelme('a.png', *[shape(label, [[0, i], [5, i]], 'rectangle')
                                                  for i, label in enumerate(labels)]))
    code, out, err = convert(tmp_path, tmp_path)
    assert code == 0 and 'differ only in case' in err and 'Car, car' in err and 'listed several times: 1 (' in err, err
    lines = (tmp_path / 'labels' / 'classes.txt').read_text(encoding='utf-8').splitlines()
    assert [line.rsplit(' ', 3)[0] for line in lines] == ['background', 'class 1', 'of lines', 'Car', 'car', '\u6811']
    assert mask(tmp_path)[:6, 0].tolist() == [2, 3, 4, 5, 1, 0]
    check_printed_command(out)


def test_an_earlier_conversion_is_replaced_whole_and_nothing_else_is(tmp_path):
    picture(tmp_path / 'a.png')
    picture(tmp_path / 'b.png')
    path = write(tmp_path / 'a.json', coco({'category_id': 3, 'segmentation': [FLAT]}))
    assert convert(tmp_path, path)[0] == 0
    content = json.loads(path.read_text())
    content['images'][0]['file_name'] = 'b.png'
    write(path, content)
    assert convert(tmp_path, path)[0] == 0
    assert sorted(os.listdir(str(tmp_path / 'labels'))) == ['.conversion.json', 'b.png', 'classes.txt']
    before = mask(tmp_path, 'b.png')
    content['annotations'][0]['segmentation'][0][0] = float('nan')
    write(path, content)
    assert 'annotation 0' in refusal(convert(tmp_path, path)) and 'a.json' in refusal(convert(tmp_path, path))
    np.testing.assert_array_equal(mask(tmp_path, 'b.png'), before)
    write(path, coco({'category_id': 3, 'segmentation': [FLAT]}))
    Image.fromarray(before + 1).save(str(tmp_path / 'labels' / 'b.png'))
    assert 'b.png' in refusal(convert(tmp_path, path)) and (mask(tmp_path, 'b.png') == before + 1).all()
    (tmp_path / 'labels' / '.conversion.json').unlink()
    assert 'b.png' in refusal(convert(tmp_path, path))
    assert not [name for name in os.listdir(str(tmp_path)) if '.tmp' in name]


@pytest.mark.parametrize('content, told', [
    ('{"shapes": [', 'damaged JSON'), ('[' * 100000, 'damaged JSON'), ('', 'damaged JSON'), ('[1, 2]', 'not LabelMe'),
    ('3', 'not LabelMe'), ('{}', 'not LabelMe'), ('<?xml version="1.0"?><annotations/>', 'export as COCO 1.0'),
    ([{'version': 0, 'tags': [], 'shapes': [], 'tracks': []}], 'export as COCO 1.0'),
    ({'name': 'task', 'labels': [], 'jobs': []}, 'export as COCO 1.0'),
    ({'imgHeight': 4, 'imgWidth': 4, 'objects': []}, 'convert_cityscapes.py'),
    (labelme('a.png', shape('car', [[1, 2], [3, float('nan')], [5, 6]])), 'coordinate'),
    (labelme('a.png', shape('car', [[1, 2], [3, 1e300], [5, 6]])), 'coordinate'),
    (labelme('a.png', shape('car', [[1, 2], [3], [5, 6]])), 'damaged annotation'),
    (labelme('a.png', shape('', SQUARE)), 'label is empty'), (labelme('a.png', shape(None, SQUARE)), 'damaged'),
    (labelme('a.png', 5), 'damaged annotation'), (labelme('a.png', {'label': 'car'}), 'points'),
    (labelme('a.png', shape('car', SQUARE), imageHeight=1 << 15, imageWidth=1 << 14), 'not a valid size'),
    (labelme('a.png', shape('car', SQUARE), imageHeight=0), 'not a valid size'),
    (labelme('a.png', shape('car', SQUARE), imageHeight='x'), 'damaged'),
    (labelme('none.png', shape('car', SQUARE), imageHeight=None, imageWidth=None), '--image_dir'),
    (labelme('b.png', shape('car', SQUARE)), '30 x 60'),
    (labelme('a.png', *[shape('c%d' % i, SQUARE) for i in range(255)]), '256 classes'),
    (labelme('a.png', shape('ignore', SQUARE)), 'no labels other than'),
    (labelme('a.png', shape('car', SQUARE, 'line')), 'type line'),
    (coco({'category_id': 4, 'segmentation': [FLAT]}), 'annotation 0'),
    (coco({'category_id': 3, 'segmentation': [FLAT], 'image_id': 2}), 'annotation 0'),
    (coco({'category_id': 3, 'segmentation': [FLAT[:-1]]}), 'annotation 0'),
    (coco({'category_id': 3, 'segmentation': {'counts': [3], 'size': [40, 60]}}), 'fewer pixels'),
    (coco({'category_id': 3, 'segmentation': {'counts': '3', 'size': [40, 60]}}), 'fewer pixels'),
    (coco({'category_id': 3, 'segmentation': {'counts': [-3, 'a'], 'size': [40, 60]}}), 'run length'),
    (coco({'category_id': 3, 'segmentation': {'counts': [9999999], 'size': [40, 60]}}), 'damaged annotation'),
    (coco({'category_id': 3, 'segmentation': {'counts': [4], 'size': [2, 2]}}), '2 x 2'),
    (coco({'category_id': 3, 'segmentation': [FLAT], 'iscrowd': 1}), '--keep_crowds'),
    (coco({'category_id': 3, 'bbox': [1, 2, 3, 4]}), 'no polygon'),
    (dict(coco(), categories=[{'id': 3, 'name': 'a'}, {'id': 3, 'name': 'b'}]), 'several categories'),
    (coco(images=[{'id': 1, 'file_name': '\ud800.png', 'height': 4, 'width': 4}]), 'damaged annotation'),
    (coco(images=[{'id': i, 'file_name': 'a.png', 'height': 4, 'width': 4} for i in (1, 2)]), 'no polygon'),
    (coco({'category_id': 3, 'segmentation': [FLAT]}, images=[
        {'id': i, 'file_name': 'a.png', 'height': 40, 'width': 60} for i in (1, 2)]), 'more than once'),
    (coco(images=5), 'damaged annotation'), (coco(categories=[{}]), "'id' is missing"),
    (coco({'category_id': 3, 'segmentation': [FLAT]}, images=[{'id': 1, 'file_name': 5}]), 'not text'),
])
def test_what_cannot_be_converted_is_refused_by_name_and_leaves_nothing(tmp_path, content, told):
    if 'counts' in str(content):
        pytest.importorskip('pycocotools')
    picture(tmp_path / 'a.png')
    picture(tmp_path / 'b.png', height=30)
    path = write(tmp_path / 'damaged.json', content)
    message = refusal(convert(tmp_path, path))
    assert told in message and 'damaged.json' in message, message
    assert sorted(os.listdir(str(tmp_path))) == ['a.png', 'b.png', 'damaged.json']


def test_images_that_were_annotated_upright_need_apply_exif(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    picture(tmp_path / 'a.jpg', 60, 40, exif=exif)
    write(tmp_path / 'a.json', labelme('a.jpg', shape('car', SQUARE)))
    code, out, err = convert(tmp_path, tmp_path)
    assert code == 0 and 'EXIF' in err and '--apply_exif' in out.splitlines()[-1], err
    check_printed_command(out)


def test_names_of_images_never_lead_out_of_the_folder(tmp_path):
    path = write(tmp_path / 'in' / 'a.json', coco({'category_id': 3, 'segmentation': [FLAT]}, images=[
        {'id': 1, 'file_name': '../../x/a.png', 'height': 40, 'width': 60},
        {'id': 2, 'file_name': 'C:\\data\\a.jpg', 'height': 40, 'width': 60},
        {'id': 3, 'file_name': '/x/a.jpg', 'height': 40, 'width': 60}]))
    assert convert(tmp_path, path)[0] == 0
    found = [os.path.relpath(os.path.join(folder, name), str(tmp_path / 'labels'))
             for folder, _, names in os.walk(str(tmp_path)) for name in names if name.endswith('.png')]
    assert sorted(found) == ['data/a.png', 'x/a_jpg.png', 'x/a_png.png']


def test_folders_of_other_files_are_refused(tmp_path):
    assert 'does not exist' in refusal(convert(tmp_path, tmp_path / 'nothing'))
    (tmp_path / 'in').mkdir()
    assert 'no .json' in refusal(convert(tmp_path, tmp_path / 'in'))
    write(tmp_path / 'in' / 'a.xml', '<annotation/>')
    assert 'COCO 1.0' in refusal(convert(tmp_path, tmp_path / 'in'))
    write(tmp_path / 'in' / 'a.json', labelme('a.png', shape('car', SQUARE)))
    write(tmp_path / 'in' / 'b.json', coco({'category_id': 3, 'segmentation': [FLAT]}))
    assert 'b.json' in refusal(convert(tmp_path, tmp_path / 'in'))
    assert 'give either' in refusal(run('convert_annotations.py'))
    assert '--label_dir' in refusal(run('convert_annotations.py', '--annotations=%s' % tmp_path))
    assert 'inside' in refusal(convert(tmp_path, tmp_path / 'in' / 'a.json', '--list_dir=%s' % (tmp_path / 'labels')))


def test_neither_tensorflow_nor_pycocotools_is_needed_for_polygons(tmp_path):
    for name in ('tensorflow', 'pycocotools'):
        write(tmp_path / 'without' / (name + '.py'), 'raise ImportError("hidden")')
    environment = dict(os.environ, PYTHONPATH=str(tmp_path / 'without'))
    picture(tmp_path / 'a.png')
    for segmentation, code in (([FLAT], 0), ({'counts': [2400], 'size': [40, 60]}, 1)):
        path = write(tmp_path / 'a.json', coco({'category_id': 3, 'segmentation': segmentation}))
        process = subprocess.run([sys.executable, 'convert_annotations.py', '--annotations=%s' % path,
                                  '--label_dir=%s' % (tmp_path / 'labels')], cwd=ROOT, env=environment,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
        assert process.returncode == code, process.stderr
        if code:
            assert 'a.json: run-length masks need' in process.stderr and '-r requirements-coco.txt' in process.stderr
            assert 'Traceback' not in process.stderr
