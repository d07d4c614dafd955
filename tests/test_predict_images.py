"""--option=predict on photos: what it writes, skips, and says about images that it cannot read."""

import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from narrow_main import UNITS
from PIL import Image
from test_main import refused, run

from utils.data import image_files, palette, sources
from utils.image_reader import ImageReader
from utils.net import compat
from utils.net.blocks import BLOCKS, resnet_blocks
from utils.prediction import masks
from utils.prediction.predictor import Prediction
from utils.system.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Returns a modeldir of a narrow network after one step on the sample, trained without data flags."""
    folder, patch = tmp_path_factory.mktemp('trained'), pytest.MonkeyPatch()
    patch.setitem(BLOCKS, 'res50', resnet_blocks(UNITS, depth=16))
    patch.chdir(ROOT)
    code, _, stderr = run('--option=train', '--num_steps=1', '--batch_size=1', '--input_height=33', '--input_width=33',
                          '--valid_interval=0', '--check_labels=false', *[
                              '--%s=%s' % (flag, folder / name) for flag, name in (
                                  ('modeldir', 'model'), ('logdir', 'log'), ('logfile', 'log.txt'))])
    assert code == 0, stderr
    yield str(folder / 'model')
    patch.undo()


@pytest.fixture
def predict(trained, tmp_path):
    """Returns a function that runs --option=predict into tmp_path/output and returns (exit code, stdout, stderr)."""
    def with_flags(*flags, **changed):
        option = changed.get('option', 'predict')
        return run('--option=' + option, '--modeldir=' + trained, '--out_dir=%s' % (tmp_path / 'output'), *flags)

    return with_flags


def photo(path, seed=0, size=(30, 41)):
    """Saves an image of smooth random colours and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (5, 7, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize(size[::-1], Image.BILINEAR).save(str(path), quality=80)
    return path


def written(folder):
    """Returns the sorted paths of all files below tmp_path/output."""
    top = str(folder / 'output')
    return sorted(os.path.relpath(os.path.join(place, name), top) for place, _, names in os.walk(top) for name in names)


def truncated(path):
    photo(path, size=(60, 80))
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def fill(folder):
    """Saves four good images, three of them in subfolders, and five unreadable ones; returns the latter's names."""
    photo(folder / 'a.jpg', 1)
    photo(folder / 'sub' / 'a.png', 2, (25, 33))
    photo(folder / 'sub' / 'deep' / 'b.bmp', 3)
    photo(folder / 'sub' / 'deep' / 'z.jpg', 4)
    truncated(folder / 'cut.jpg')
    truncated(folder / 'sub' / 'cut.png')
    (folder / 'sub' / 'empty.jpg').write_text('')
    (folder / 'text.png').write_text('no image')
    (folder / 'gone.jpg').symlink_to(folder / 'nowhere')
    return ['cut.jpg', 'cut.png', 'empty.jpg', 'text.png', 'gone.jpg']


def test_one_photo_with_what_was_trained_on_the_sample(predict, tmp_path):
    photo(tmp_path / 'photo.jpg')
    code, stdout, stderr = predict('--image=%s' % (tmp_path / 'photo.jpg'))
    assert code == 0, stderr
    assert 'using the bundled sample' in stdout and '1 prediction in' in stdout and 'note' not in stdout
    assert written(tmp_path) == ['prediction/photo_mask.png', 'visual_prediction/photo_mask_visual.png']
    mask = np.asarray(Image.open(str(tmp_path / 'output' / 'prediction' / 'photo_mask.png')))
    assert mask.shape == (30, 41) and mask.max() < 6


def test_a_folder_of_good_and_broken_images(predict, tmp_path):
    broken = fill(tmp_path / 'photos')
    code, stdout, stderr = predict('--image_dir=%s' % (tmp_path / 'photos'), '--overlay', '--num_threads=3')
    assert code == 1 and '4 predictions in' in stdout
    lines = [line for line in stderr.replace('\r', '\n').split('\n') if line.startswith(('warning', 'error'))]
    for name in broken:
        assert len([line for line in lines if '/%s: ' % name in line and line.startswith('warning: ')]) == 1, stderr
    assert lines[-1].startswith('error: 5 of 9 images could not be read and are named above') and len(lines) == 6
    names = ['a', 'sub/a', 'sub/deep/b', 'sub/deep/z']
    assert written(tmp_path) == sorted(
        [kind + name + end for name in names for kind, end in (
            ('prediction/', '_mask.png'), ('visual_prediction/', '_mask_visual.png'),
            ('overlay_prediction/', '_overlay.png'))])
    assert Image.open(str(tmp_path / 'output' / 'prediction' / 'sub' / 'a_mask.png')).size == (33, 25)


def test_lists_and_folders_give_the_same_masks(predict, tmp_path):
    """There are equal names in two folders, and the list has a missing image."""
    fill(tmp_path / 'photos')
    (tmp_path / 'list.txt').write_text('a.jpg\nabsent.jpg\nsub/a.png\nsub/deep/z.jpg\n')
    code, _, stderr = predict('--flagfile=dataset/sample.flags', '--test_data_list=%s' % (tmp_path / 'list.txt'),
                              '--data_dir=%s' % (tmp_path / 'photos'), '--novisual')
    assert code == 1 and 'absent.jpg: no such file' in stderr and '1 of 4 images could not be read' in stderr
    listed = {name: (tmp_path / 'output' / 'prediction' / (name + '_mask.png')).read_bytes()
              for name in ('photos_a', 'sub_a', 'z')}
    assert len(written(tmp_path)) == 3
    assert predict('--image_dir=%s' % (tmp_path / 'photos'))[0] == 1
    for name, path in (('photos_a', 'a'), ('sub_a', 'sub/a'), ('z', 'sub/deep/z')):
        assert (tmp_path / 'output' / 'prediction' / (path + '_mask.png')).read_bytes() == listed[name]


def test_skip_existing_goes_on(predict, tmp_path):
    """An image is done if all outputs that the flags ask for exist; an empty folder of masks does not count."""
    folder, grey = tmp_path / 'photos', tmp_path / 'output' / 'prediction'
    for i, name in enumerate(('a.jpg', 'sub/a.jpg', 'sub/b.jpg')):
        photo(folder / name, i)
    flags = ['--image_dir=%s' % folder, '--skip_existing']
    code, stdout, _ = predict('--test_num_steps=2', '--novisual', *flags)
    assert code == 0 and '0 of 2 images have their outputs' in stdout
    assert written(tmp_path) == ['prediction/a_mask.png', 'prediction/sub/a_mask.png']
    first = (grey / 'a_mask.png').stat().st_mtime_ns
    code, stdout, _ = predict('--novisual', *flags)
    assert code == 0 and '2 of 3 images have their outputs and are skipped' in stdout and '1 prediction in' in stdout
    assert (grey / 'a_mask.png').stat().st_mtime_ns == first
    code, stdout, _ = predict(*flags)
    assert code == 0 and '0 of 3 images' in stdout and len(written(tmp_path)) == 6
    assert (grey / 'a_mask.png').stat().st_mtime_ns > first
    code, stdout, _ = predict(*flags)
    assert code == 0 and '3 of 3 images' in stdout and 'predict with' not in stdout
    (tmp_path / 'output' / 'visual_prediction' / 'sub' / 'b_mask_visual.png').unlink()
    assert '2 of 3 images' in predict(*flags)[1]
    assert '1 prediction in' in predict('--image_dir=%s' % folder, '--test_num_steps=1')[1]  # done again


def test_an_output_folder_inside_the_images_is_not_predicted_again(predict, tmp_path):
    """This also holds if out_dir is the folder of the images itself."""
    photo(tmp_path / 'a.jpg')
    for out_dir in (tmp_path / 'output', tmp_path / 'output', tmp_path / 'more', tmp_path / 'more'):
        code, stdout, stderr = predict('--image_dir=%s' % (tmp_path / 'a.jpg').parent, '--out_dir=%s' % out_dir,
                                       '--test_num_steps=9')
        assert code == 0, stderr
        wanted = 1 if out_dir.name == 'output' else 3  # also the two masks in the other output folder
        assert '%d prediction%s' % (wanted, '' if wanted == 1 else 's') in stdout
    photo(tmp_path / 'alone' / 'a.jpg')
    for _ in range(2):
        code, stdout, _ = predict('--image_dir=%s' % (tmp_path / 'alone'), '--out_dir=%s' % (tmp_path / 'alone'))
        assert code == 0 and '1 prediction in' in stdout


def test_cityscapes_names_stay_in_their_folders(settings, tmp_path):
    """With labelIds, two images of the same frame would get the same mask."""
    conf = settings(out_dir=str(tmp_path / 'out'), visual=False, id_format='labelIds')
    frames = ['ulm/ulm_000001_000019_leftImg8bit.png', 'bonn/bonn_000001_000019_leftImg8bit.png']
    classes = palette.load_classes(19)
    writer = masks.MaskWriter(conf, classes, sources.Images(frames, [name[:-4] for name in frames]))
    assert [names[0] for names in writer._names] == ['ulm/ulm_000001_000019_pred_labelIds.png',
                                                     'bonn/bonn_000001_000019_pred_labelIds.png']
    frames[1] = 'ulm/ulm_000001_000019_gtFine_color.png'
    with pytest.raises(UserError, match='would share a mask'):
        masks.MaskWriter(conf, classes, sources.Images(frames, [name[:-4] for name in frames]))


def test_an_image_that_vanishes_before_its_overlay(settings, tmp_path, capsys):
    """Its mask is written, and the image is reported and counted, like one whose size has changed meanwhile."""
    conf = settings(out_dir=str(tmp_path / 'out'), visual=False, overlay=True)
    paths = [str(photo(tmp_path / name)) for name in ('a.jpg', 'b.jpg', 'c.jpg')]
    height, width = image_files.image_size(paths[0])
    writer = masks.MaskWriter(conf, palette.load_classes(21), sources.Images(paths, ['a', 'b', 'c']))
    os.remove(paths[0])
    with pytest.raises(UserError, match='2 of 3 images could not be read'):
        writer.write_all(Prediction(index, None, np.zeros([height, width + (index == 1)], np.int32))
                         for index in range(3))
    assert sorted(os.listdir(writer.folders['prediction'])) == ['a_mask.png', 'b_mask.png', 'c_mask.png']
    assert os.listdir(writer.folders['overlay_prediction']) == ['c_overlay.png']
    told = capsys.readouterr().err
    assert 'a.jpg: no such file' in told and 'b.jpg: the image changed while it was predicted.' in told


@pytest.mark.parametrize('flags, told', [
    (['--image={0}/a.jpg', '--image_dir={0}'], '--image and --image_dir exclude each other: drop all but one'),
    (['--image={0}/a.jpg', '--test_data_list=x.txt'], '--image and --test_data_list exclude each other'),
    (['--image_dir={0}', '--test_data_list', 'x.txt'], '--image_dir and --test_data_list exclude each other'),
    (['--image={0}/a.jpg', '--option=test'], '--image is for --option=predict, not --option=test'),
    (['--image_dir={0}', '--option=train'], '--image_dir is for --option=predict'),
    (['--image={0}/absent.jpg'], 'absent.jpg: no such file'),
    (['--image={0}'], 'is a folder: give it with --image_dir'),
    (['--image_dir={0}/a.jpg'], 'is not a folder: give images with --image'),
    (['--image_dir={0}/empty'], 'contains no images'),
    (['--image={0}/a.jpg', '--num_classes=11'],
     'was trained with --num_classes=6, but this run has --num_classes=11: '),
])
def test_bad_input(trained, tmp_path, flags, told):
    photo(tmp_path / 'a.jpg')
    (tmp_path / 'empty').mkdir()
    before = sorted(os.listdir(str(tmp_path)))
    assert told in refused('--option=predict', '--modeldir=' + trained, '--out_dir=%s' % (tmp_path / 'output'),
                           *[flag.format(tmp_path) for flag in flags])
    assert sorted(os.listdir(str(tmp_path))) == before


def test_a_list_in_a_flag_file_gives_way_to_an_image(predict, tmp_path):
    """A message says that the palette is not the training's."""
    photo(tmp_path / 'a.jpg')
    (tmp_path / 'mine.flags').write_text('--flagfile=dataset/sample.flags\n--palette=voc\n')
    code, stdout, stderr = predict('--flagfile=%s' % (tmp_path / 'mine.flags'), '--image=%s' % (tmp_path / 'a.jpg'))
    assert code == 0, stderr
    assert '--palette=' in stdout and 'this run has --palette=voc' in stdout
    assert written(tmp_path) == ['prediction/a_mask.png', 'visual_prediction/a_mask_visual.png']


def test_test_stops_at_the_first_broken_image(predict, tmp_path):
    fill(tmp_path)
    for name, size in (('a.png', (30, 41)), ('cut.png', (60, 80))):
        Image.fromarray(np.zeros(size, np.uint8)).save(str(tmp_path / ('label_' + name)))
    (tmp_path / 'list.txt').write_text('a.jpg label_a.png\ncut.jpg label_cut.png\n')
    code, stdout, stderr = predict(
        '--flagfile=dataset/sample.flags', '--valid_data_list=%s' % (tmp_path / 'list.txt'), '--nocheck_labels',
        '--data_dir=%s' % tmp_path, option='test')
    assert code == 1 and 'cut.jpg: damaged' in stderr and 'could not be read and are named above' not in stderr


@pytest.mark.parametrize('num_threads', [1, 3])
def test_a_reader_with_faults_reads_the_same_pixels(tmp_path, num_threads):
    """The pixels are equal bit for bit and in order; unreadable images are recorded by their index."""
    paths = [str(photo(tmp_path / name, i)) for i, name in enumerate(('a.jpg', 'b.png', 'c.jpg', 'd.webp'))]
    truncated(tmp_path / 'cut.jpg')
    Image.new('F', (5, 4)).save(str(tmp_path / 'float.tif'))
    mixed = [str(tmp_path / 'cut.jpg')] + paths[:2] + [str(tmp_path / 'absent.jpg')] + paths[2:] + [
        str(tmp_path / 'float.tif')]
    found = {}
    for name, images, faults in (('plain', paths, None), ('tolerant', mixed, {})):
        reader = ImageReader(images, [''] * len(images), palette.load_classes(6), compat.Input('rgb', (0, 0, 0)),
                             num_threads)
        with tf.Graph().as_default(), tf.Session() as sess:
            pair = reader.single(faults)
            with reader.running(sess):
                found[name] = [sess.run(pair)[0] for _ in images]
                with pytest.raises(tf.errors.OutOfRangeError):
                    sess.run(pair)
    assert sorted(faults) == [0, 3, 6]
    assert 'cut.jpg: damaged' in faults[0] and 'absent.jpg: no such file' in faults[3] and 'float.tif' in faults[6]
    good = [image for i, image in enumerate(found['tolerant']) if i not in faults]
    for path, one, other in zip(paths, found['plain'], good):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(one[0], image_files.load_image(path))
