"""Layer-wise adversarial training: perturb every layer, measure honestly.

    import layerwise as lw

    data = lw.load_data("digits")
    model = lw.build_model("digits_cnn", num_classes=10, shape=data.shape)
    lw.fit(model, lw.SLAT(eta=0.03), data, training=lw.Training(epochs=10))
    print(lw.evaluate(model, data.test, threat=lw.ThreatModel(eps=0.1)).to_markdown())
"""

__version__ = "0.1.0"
