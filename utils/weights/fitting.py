"""What the names and shapes in a weights file lack, have too much or fit, as phrases for messages."""

from utils.net import blocks
from utils.system.errors import quoted, some
from utils.weights import weight_names


def variable_shapes(variables):
    """{name as in a checkpoint: shape tuple} of TensorFlow variables."""
    return {variable.op.name: tuple(variable.shape.as_list()) for variable in variables}


def size(shape):
    """'3x3x2048x21'."""
    return quoted('x'.join(map(str, shape))) or 'scalar'


def mismatches(wanted, found, extra=()):
    """Phrases on what a file lacks, has in another shape or has too much; [] if all is well.

    Args:
      wanted: {name: shape} of the network's variables to restore.
      found: {name: shape} in the file.
      extra: names in the file that the network should have too.
    """
    missing = [name for name in wanted if name not in found]
    reshaped = ['%s: %s in the file, %s in the network' % (name, size(found[name]), size(wanted[name]))
                for name in wanted if name in found and found[name] != wanted[name]]
    phrases = []
    if missing:
        phrases.append('%d of %d variables are missing (%s)' % (len(missing), len(wanted), some(missing)))
    if reshaped:
        phrases.append('%d of %d have another shape (%s)' % (len(reshaped), len(wanted), some(reshaped)))
    if extra:
        phrases.append('%d are extra (%s)' % (len(extra), some(sorted(extra), show=quoted)))
    return phrases


def hints(wanted, found):
    """Phrases on the flags with which a network of {name: shape} `wanted` would fit a file of `found`."""
    fitting = [encoder for encoder in sorted(blocks.BLOCKS) if weight_names.fits(found, encoder)]
    if not fitting:
        encoder = weight_names.encoder_of(found)
        if encoder:
            return ['the file has names of --encoder_name=%s, but not the whole of that encoder' % encoder]
        return ['the file fits no encoder_name (%s)' % ', '.join(sorted(blocks.BLOCKS))]
    phrase = 'the file fits --encoder_name=' + ' or '.join(fitting)
    classes = weight_names.num_classes_of(found)
    if classes:
        phrase += ' --num_classes=%d' % classes
    dilated_type = weight_names.dilated_type_of(found)
    if dilated_type != weight_names.dilated_type_of(wanted):
        phrase += ' --dilated_type=' + dilated_type
    missing = [name for name in wanted if name not in found]
    if missing and not any(map(weight_names.is_model, missing)):
        phrase += ', but it lacks the state of the training: start from it with --pretrain_file'
    return [phrase]
