"""Multi-scale training and prediction: the same network is applied at three scales, and the maximum is taken."""

import tensorflow.compat.v1 as tf

from model import Model
from utils.net import layers

SCALES = (0.75, 0.5)


class Model_msc(Model):
    """A Model whose logits are the pixel-wise maximum over the scales 1.0, 0.75 and 0.5."""

    def logits(self, net, images):
        """Returns the fused logits and the logits of each scale (DeepLab v2, section 4.1.2).

        Args:
          net: the network, built on `images`; its weights are shared by all scales.
          images: [N, H, W, 3].

        Returns:
          a list of logits [fused, scale 1.0, scale 0.75, scale 0.5]. The first two have the shape
          [N, h, w, num_classes]; for the others, h and w are smaller in proportion to the scale.
        """
        align_corners = self.numerics.align_corners
        scaled = [net.outputs]
        for scale in SCALES:
            size = layers.scaled_size(tf.shape(images)[1:3], scale, align_corners)
            scaled.append(net.apply(layers.resize(images, size, align_corners))[1])
        full_size = tf.shape(net.outputs)[1:3]
        resized = [layers.resize(logits, full_size, align_corners) for logits in scaled[1:]]
        fused = tf.reduce_max(tf.stack([net.outputs] + resized), axis=0)  # [N, h, w, num_classes]
        return [fused] + scaled
