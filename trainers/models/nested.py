"""Models whose layers may be models."""

import keras


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers of a model and of the models in it, without the input layers."""
    found: list[keras.layers.Layer] = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += all_layers(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            found.append(layer)
    return found


def in_precision(model: keras.Model, policy: keras.DTypePolicy) -> keras.Model:
    """Returns a model, or a copy of it, that computes in a precision.

    A loaded model computes in the precision that it was saved in. The last layer never computes in
    half precision, which rounds small probabilities to 0.
    """
    layers = all_layers(model)
    mixed = any(layer.dtype_policy.name.startswith("mixed") for layer in layers)

    def wanted(layer: keras.layers.Layer) -> str:
        # Among layers of mixed precision, those in float32, such as a normalization, need it.
        pinned = mixed and layer.dtype_policy.name == "float32"
        return policy.variable_dtype if layer is layers[-1] or pinned else policy.name

    if all(layer.dtype_policy.name == wanted(layer) for layer in layers):
        return model

    def clone(layer: keras.Operation) -> keras.Operation:
        if isinstance(layer, keras.Model):  # Keras 3.12's `recursive` leaves out models in models.
            return keras.models.clone_model(layer, clone_function=clone)
        dtype = {"dtype": wanted(layer)} if isinstance(layer, keras.layers.Layer) else {}
        return type(layer).from_config(layer.get_config() | dtype)

    cloned = keras.models.clone_model(model, clone_function=clone)
    cloned.set_weights(model.get_weights())
    return cloned
