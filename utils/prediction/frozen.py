"""A network whose variables have become constants: a graph of its own that needs no checkpoint."""

import tensorflow.compat.v1 as tf

VARIABLE_OPS = ('VarHandleOp', 'ReadVariableOp')


def constant_graph(sess, fetches):
    """Copies what some tensors need into a new graph, with constants for the variables.

    TensorFlow's own convert_variables_to_constants puts all weights into one message and that is read again: three
    copies of them that are not needed here. Each weight is copied alone.

    Args:
      sess: a session whose resource variables have their final values.
      fetches: tensors of its graph.

    Returns:
      a tf.Graph whose ops have the same names.
    """
    needed = tf.graph_util.extract_sub_graph(sess.graph.as_graph_def(), [fetch.op.name for fetch in fetches])
    others = tf.GraphDef(versions=needed.versions, library=needed.library)
    others.node.extend(node for node in needed.node if node.op not in VARIABLE_OPS)
    for node in others.node:
        node.attr.pop('_class', None)  # which device's variable it stays with
    with tf.Graph().as_default() as graph:
        constants, values = {}, {}  # by the variable's name; by the name of each of its readers
        for node in needed.node:
            if node.op == 'ReadVariableOp':
                name = node.input[0]
                if name not in constants:
                    constants[name] = tf.constant(sess.run(node.name + ':0'), name=name)
                values[node.name + ':0'] = constants[name]
        tf.import_graph_def(others, input_map=values, name='')
    return graph
