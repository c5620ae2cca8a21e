// Classifies one image: loads a model, reads a PPM or PGM file, prints the five most probable labels.
#include <vimrt/vimrt.h>

#include <cstdio>
#include <exception>

#include "pnm.h"

int main(int argc, char** argv) {
    if (argc != 3) {
        std::fprintf(stderr, "usage: %s MODEL.vimrt IMAGE.ppm\n", argc > 0 ? argv[0] : "embed");
        return 2;
    }
    try {
        const vimrt::Engine engine(argv[1]);
        const Image image = read_pnm(argv[2]);
        const vimrt::ImageView view{image.pixels.data(), image.rows, image.columns, image.columns * 3};
        for (const vimrt::Prediction& prediction : engine.classify(view, 5)) {
            std::printf("%s %.4f\n", prediction.label.c_str(), static_cast<double>(prediction.probability));
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
