"""Small networks of each family, for tests that shrink them."""

import keras
from keras import layers


def _normalized(x, name):
    x = layers.BatchNormalization(name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def cnn():
    """A plain chain, with its features flattened for a dense layer."""
    blocks = []
    for i in range(3):
        blocks += [
            layers.Conv2D(4, 3, padding="same", name=f"conv{i}"),
            layers.BatchNormalization(name=f"norm{i}"),
            layers.ReLU(name=f"relu{i}"),
        ]
    return keras.Sequential(
        [
            keras.Input((4, 4, 4)),
            *blocks,
            layers.Flatten(),
            layers.Dense(6, activation="relu", name="hidden"),
            layers.Dense(3, name="logits"),
        ],
        name="cnn",
    )


def resnet():
    """Residual blocks, with a projection where the width changes."""
    image = keras.Input((4, 4, 3), name="image")
    x = layers.Conv2D(4, 1, name="stem")(image)
    for i, width in enumerate((4, 4, 8, 8, 8)):
        y = layers.Conv2D(width, 3, padding="same", name=f"b{i}_conv1")(x)
        y = _normalized(y, f"b{i}_1")
        y = layers.Conv2D(width, 3, padding="same", name=f"b{i}_conv2")(y)
        y = layers.BatchNormalization(name=f"b{i}_2_norm")(y)
        if i == 2:
            x = layers.Conv2D(width, 1, name="projection")(x)
        x = layers.ReLU(name=f"b{i}")(layers.Add(name=f"b{i}_add")([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(3, name="logits")(x))


def mobile():
    """An inverted residual with squeeze and excitation."""
    image = keras.Input((4, 4, 3))
    x = layers.Conv2D(4, 1, name="stem")(image)
    for i in range(2):
        y = layers.Conv2D(8, 1, use_bias=False, name=f"expand{i}")(x)
        y = _normalized(y, f"expand{i}")
        y = layers.DepthwiseConv2D(3, padding="same", name=f"depthwise{i}")(y)
        s = layers.GlobalAveragePooling2D()(y)
        s = layers.Reshape((1, 1, 8))(s)
        s = layers.Conv2D(2, 1, activation="relu", name=f"squeeze{i}")(s)
        s = layers.Conv2D(8, 1, activation="sigmoid", name=f"excite{i}")(s)
        y = layers.Multiply()([y, s])
        y = layers.Conv2D(4, 1, use_bias=False, name=f"project{i}")(y)
        x = layers.Add()([x, layers.BatchNormalization(name=f"norm{i}")(y)])
    x = layers.GlobalMaxPooling2D()(x)
    return keras.Model(image, layers.Dense(3, name="logits")(x))


def vit():
    """Patches, attention and a class token's place taken by the first."""
    image = keras.Input((4, 4, 3))
    x = layers.Conv2D(8, 2, strides=2, name="patches")(image)
    x = layers.Reshape((4, 8))(x)
    for i in range(2):
        y = layers.LayerNormalization()(x)
        attend = layers.MultiHeadAttention(4, 3, name=f"attention{i}")
        y, scores = attend(y, y, return_attention_scores=True)
        x = x + y
        y = layers.LayerNormalization()(x)
        y = layers.Dense(12, activation="gelu", name=f"up{i}")(y)
        x = x + layers.Dense(8, name=f"down{i}")(y)
    x = layers.Concatenate()([x[:, 0], layers.Flatten()(scores)])
    return keras.Model(image, layers.Dense(3, name="logits")(x))


def grouped_attention():
    """Attention whose heads share keys, without a norm."""
    tokens = keras.Input((5, 6))
    x = layers.Dense(8, name="embed")(tokens)
    attend = layers.GroupQueryAttention(3, 4, 2, name="grouped")
    x = layers.Add()([x, attend(x, x)])
    attend = layers.MultiHeadAttention(2, 3, output_shape=6, name="other")
    y = layers.Attention()([attend(x, x), layers.Dense(6, name="memory")(x)])
    return keras.Model(tokens, layers.Dense(3, name="logits")(y))


def text():
    """A transformer on token ids, of which 0 is no token."""
    ids = keras.Input((6,), dtype="int32", name="ids")
    x = layers.Embedding(9, 8, mask_zero=True, name="embedding")(ids)
    for i in range(4):
        attend = layers.MultiHeadAttention(2, 4, name=f"attention{i}")
        x = layers.LayerNormalization()(layers.Add()([x, attend(x, x)]))
        y = layers.Dense(10, activation="relu", name=f"up{i}")(x)
        y = layers.Dense(8, name=f"down{i}")(y)
        x = layers.LayerNormalization()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(ids, layers.Dense(3, name="logits")(x))


def recurrent():
    """Recurrent layers one way and both ways, with states handed on."""
    ids = keras.Input((5,), dtype="int32")
    x = layers.Embedding(9, 6, mask_zero=True, name="embedding")(ids)
    x = layers.Bidirectional(
        layers.LSTM(4, return_sequences=True), name="both"
    )(x)
    x = layers.Bidirectional(
        layers.GRU(4, return_sequences=True), merge_mode="sum", name="summed"
    )(x)
    x, state = layers.GRU(
        4, return_sequences=True, return_state=True, name="gru"
    )(x)
    x = layers.SimpleRNN(4, return_sequences=True, name="rnn")(
        x, initial_state=state
    )
    x = layers.TimeDistributed(layers.Dense(4, name="each"))(x)
    x = layers.LSTM(4, name="lstm")(x)
    return keras.Model(ids, layers.Dense(3, name="logits")(x))


def unet():
    """Concatenated skips, a transposed convolution and two outputs."""
    image = keras.Input((4, 4, 3))
    skip = layers.Conv2D(4, 3, padding="same", name="down")(image)
    x = layers.MaxPooling2D()(layers.ReLU()(skip))
    x = layers.SeparableConv2D(6, 3, padding="same", name="bottom")(x)
    up = layers.Conv2DTranspose(4, 2, strides=2, name="up")(x)
    x = layers.Concatenate()([skip, up, image])
    x = _normalized(x, "joined")
    mask = layers.Conv2D(2, 1, name="logits")(x)
    kind = layers.Dense(3, name="kind_logits")(
        layers.GlobalAveragePooling2D()(x)
    )
    return keras.Model(image, {"mask": mask, "kind": kind})


def nested():
    """A Sequential and a Functional model, the second one called twice."""
    inner = keras.Input((4, 4, 4), name="inner_image")
    branch = keras.Model(
        inner,
        layers.Conv2D(4, 1, activation="relu", name="inner_conv")(inner),
        name="branch",
    )
    stem = keras.Sequential(
        [keras.Input((4, 4, 3)), layers.Conv2D(4, 1, name="stem_conv")],
        name="stem",
    )
    first, second = keras.Input((4, 4, 3)), keras.Input((4, 4, 3))
    x = layers.Concatenate()([branch(stem(first)), branch(stem(second))])
    x = layers.Flatten()(layers.AveragePooling2D(2)(x))
    return keras.Model([first, second], layers.Dense(3, name="logits")(x))


def grouped():
    """Groups of channels, in one and three dimensions, and shuffled."""
    signal = keras.Input((6, 3))
    x = layers.Conv1D(8, 1, name="stem")(signal)
    x = layers.Conv1D(8, 3, groups=2, name="grouped")(x)
    x = layers.DepthwiseConv1D(
        3, depth_multiplier=2, use_bias=False, name="depthwise"
    )(x)
    x = layers.PReLU(shared_axes=[1], name="slopes")(x)
    x = layers.Reshape((2, 1, 2, 8))(x)
    x = layers.Permute((1, 2, 4, 3))(x)
    x = layers.Reshape((2, 1, 1, 16))(x)
    x = layers.Conv3D(8, 1, name="cube")(x)
    x = layers.Conv3D(8, 1, groups=8, name="by_channel")(x)
    x = layers.GlobalAveragePooling3D()(x)
    return keras.Model(signal, layers.Dense(3, name="logits")(x))


FAMILIES = {
    f.__name__: f
    for f in (
        cnn,
        resnet,
        mobile,
        vit,
        grouped_attention,
        text,
        recurrent,
        unet,
        nested,
        grouped,
    )
}
