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
    last = model.layers[-1]

    def wanted(layer: keras.layers.Layer) -> str:
        return policy.variable_dtype if layer is last else policy.name

    if all(layer.dtype_policy.name == wanted(layer) for layer in all_layers(model)):
        return model

    def clone(layer: keras.Operation) -> keras.Operation:
        dtype = {"dtype": wanted(layer)} if isinstance(layer, keras.layers.Layer) else {}
        return type(layer).from_config(layer.get_config() | dtype)

    cloned = keras.models.clone_model(model, clone_function=clone, recursive=True)
    cloned.set_weights(model.get_weights())
    return cloned
